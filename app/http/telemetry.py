"""Around every request: its id, its context, and at its end the metrics, the log line and the spans."""

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
    """The outermost layer. It answers an unexpected exception with a 500 that carries the request's id."""

    def __init__(self, app: ASGIApp, service: Service, labels: "RouteLabels") -> None:
        self.app = app
        self.service = service
        self.labels = labels
        self._own_ids = map(f"{secrets.token_hex(4)}{{:08x}}".format, count(1))  # cheap, and unique to this process

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_page(scope["path"], self.service.settings):
            await self.app(scope, receive, send)  # the page's own calls of the API are observed
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
                record_request()  # a client that has its whole answer finds it in the log and in /metrics
            await send(message)

        try:
            await self.app(scope, receive, send_observed)
        except Exception:
            logger.exception("an unexpected fault")
            if record.status:  # the response has begun, so only a closed connection can show that it is not whole
                raise
            error = InferenceFailedError("an unexpected fault; the log has it")
            await error_response(error)(scope, receive, send_observed)
        finally:
            record_request()

    def _request_id(self, scope: Scope) -> str:
        """The client's own where it is short and plain, so that it can stand in a log line; else a new one."""
        for name, value in scope["headers"]:
            if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                return str(value, "ascii")
        return next(self._own_ids)


class RouteLabels:
    """The label of a path in metrics and logs: the route's own path, that of the mounted app, or UNMATCHED."""

    def __init__(self, api: FastAPI) -> None:
        self._api = api

    def label(self, path: str) -> str:
        if path in self._paths:
            return path
        return next((mount for mount in self._mounts if path.startswith(f"{mount}/")), UNMATCHED)

    @cached_property
    def _paths(self) -> frozenset[str]:
        """Read at the first request, when all routes have been added."""
        return frozenset(self._mounts) | {route.path for route in iter_route_contexts(self._api.routes) if route.path}

    @cached_property
    def _mounts(self) -> tuple[str, ...]:
        return tuple(route.path for route in self._api.routes if isinstance(route, Mount))
