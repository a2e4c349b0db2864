"""The service as one ASGI app: telemetry, access rules, the table of JSON routes, and FastAPI for everything else."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.access import AccessMiddleware
from app.http.dispatch import JSONDispatcher, JSONRoute
from app.http.telemetry import RouteLabels, TelemetryMiddleware
from app.service import Service


class Application:
    """The ASGI app. `api` documents every route and answers those that are not in `json_routes`: health, metrics, /docs, 404.

    Routes may be added to `api` until the first request.
    """

    def __init__(self, service: Service, json_routes: Mapping[tuple[str, str], JSONRoute], api: FastAPI) -> None:
        self.api = api
        self.state = api.state
        self.state.service = service
        document(json_routes, api)
        dispatcher = JSONDispatcher(json_routes, service, fallback=api)
        # Telemetry wraps the access rules, so that rejected requests are counted and logged too.
        self._app: ASGIApp = TelemetryMiddleware(AccessMiddleware(dispatcher, service), service, RouteLabels(api))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def lifespan(self) -> AbstractAsyncContextManager[Any]:
        """Starts and stops the service for callers without an ASGI server: `async with app.lifespan():`."""
        return self.api.router.lifespan_context(self.api)


def document(json_routes: Mapping[tuple[str, str], JSONRoute], api: FastAPI) -> None:
    """Registers the table's routes with FastAPI, which describes them in /docs. Their requests never reach FastAPI."""
    for (method, path), route in json_routes.items():
        responses = route.errors.responses()
        if route.has_bytes:
            responses[200] = {
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
            }
        answer: dict[str, Any] = {} if route.answer_type is None else {"response_model": route.answer_type}
        api.add_api_route(
            path,
            route.handler,
            methods=[method],
            summary=route.summary,
            tags=[*route.errors.tags],
            responses=responses,
            **answer,
        )
