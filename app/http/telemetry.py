"""Wraps every request: assigns its id and context, and records metrics, log line and spans at its end."""

import logging
import re
import secrets
from functools import cached_property
from itertools import count
from time import perf_counter

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import CLIENT_CLOSED_REQUEST, error_response
from app.errors import InferenceFailedError
from app.http.access import is_page
from app.observability.logs import log_request
from app.observability.request_context import UNMATCHED, RequestContext, bind_request
from app.service import Service

logger = logging.getLogger(__name__)
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


class TelemetryMiddleware:
    """The outermost layer. It also answers unexpected exceptions, with a 500 that has the request's id."""

    def __init__(self, app: ASGIApp, service: Service, labels: "RouteLabels") -> None:
        self.app = app
        self.service = service
        self.labels = labels
        self._own_ids = map(
            f"{secrets.token_hex(4)}{{:08x}}".format, count(1)
        )  # a random prefix per process, then a count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_page(scope["path"], self.service.settings):
            await self.app(scope, receive, send)  # the playground's calls of the API are recorded instead
            return
        path = scope["path"]
        record = RequestContext(self._request_id(scope), scope["method"] if scope["method"] in METHODS else "OTHER")
        bind_request(record)
        span = self.service.tracing.begin(record, scope)
        id_header = (b"x-request-id", record.request_id.encode())
        is_recorded = False

        def record_request() -> None:
            nonlocal is_recorded
            if not is_recorded:
                is_recorded = True
                record.route = self.labels.label(path)
                record.status = record.status or CLIENT_CLOSED_REQUEST
                seconds = perf_counter() - record.started
                self.service.metrics.request_answered(record.route, record.status, record.code, seconds)
                log_request(record, seconds)
                self.service.tracing.end(span, record)

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), id_header]
            elif not message.get("more_body", False):
                record_request()  # before the client has its answer, so that it can find it in the log and /metrics
            await send(message)

        try:
            await self.app(scope, receive, send_observed)
        except Exception:
            logger.exception("an unexpected error")
            if record.status:  # the response has started, so closing the connection is the only way to report it
                raise
            error = InferenceFailedError("an unexpected error; see the log")
            await error_response(error)(scope, receive, send_observed)
        finally:
            record_request()

    def _request_id(self, scope: Scope) -> str:
        """The client's own id if it is safe to log (short, plain ASCII); else a new one."""
        for name, value in scope["headers"]:
            if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                return str(value, "ascii")
        return next(self._own_ids)


class RouteLabels:
    """Labels paths in metrics and logs: with the route's path, that of a mounted app, or UNMATCHED."""

    def __init__(self, api: FastAPI) -> None:
        self._api = api

    def label(self, path: str) -> str:
        if path in self._paths:
            return path
        return next((mount for mount in self._mounts if path.startswith(f"{mount}/")), UNMATCHED)

    @cached_property
    def _paths(self) -> frozenset[str]:
        """Computed at the first request, when all routes have been added."""
        return frozenset(self._mounts) | {route.path for route in iter_route_contexts(self._api.routes) if route.path}

    @cached_property
    def _mounts(self) -> tuple[str, ...]:
        return tuple(route.path for route in self._api.routes if isinstance(route, Mount))
