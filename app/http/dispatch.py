"""Answers the routes with a JSON body: one table lookup, one parse, one serialization.

FastAPI's own handling of a request (nine layers, the standard library's JSON, dependencies, validation of the answer) takes
several times as long as scoring a short text, and blocks all other requests while it parses a trainer's 20 MB body. So
FastAPI only documents these routes.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.bodies import parse, write
from app.api.errors import CLIENT_CLOSED_REQUEST, ErrorFormat
from app.errors import BodyTooLargeError, InvalidJSONError, RequestError, UnsupportedMediaTypeError
from app.http.disconnect import ClientGoneError, DisconnectWatches
from app.observability.request_context import current_request
from app.service import Service

LARGE_BODY_BYTES = 1_000_000
"""Larger bodies are parsed, and their answers written, in the worker process: they would hold the GIL for over 10 ms."""
LARGE_BODY_COMMAS = 5_000
"""So are bodies with this many commas: rejecting 330,000 empty objects, which fit into 1 MB, takes more than 2 s."""
JSON_TYPE = (b"content-type", b"application/json")
Answer = BaseModel | dict[str, Any] | bytes | Response


@dataclass(frozen=True, slots=True)
class JSONRoute:
    """A route with a JSON body.

    `handler(body, service)` returns a pydantic model, a dict with the fields of `answer_type`, JSON bytes or a Response. If
    it raises a RequestError, `errors` writes the response.
    """

    body_type: type[BaseModel]
    handler: Callable[[Any, Service], Awaitable[Answer]]
    errors: ErrorFormat
    summary: str
    answer_type: type[BaseModel] | None = None
    """The answer's type for /docs, if the handler's return type does not tell."""
    has_bytes: bool = False
    """Whether the answer can be binary instead of JSON."""


class JSONDispatcher:
    """Passes a request to the JSON route with its method and path, and every other request to `fallback`."""

    def __init__(self, routes: Mapping[tuple[str, str], JSONRoute], service: Service, fallback: ASGIApp) -> None:
        self.routes = routes
        self.service = service
        self.fallback = fallback
        self._watches = DisconnectWatches()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self.fallback(scope, receive, send)
            return
        try:
            content = await self._content(route, scope, receive)
        except RequestError as error:
            if context := current_request():
                context.code = error.code
            await route.errors.write(error)(scope, receive, send)
        except ClientGoneError:
            await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)
        else:
            if isinstance(content, Response):
                await content(scope, receive, send)
                return
            headers = [JSON_TYPE, (b"content-length", b"%d" % len(content))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": content})

    async def _content(self, route: JSONRoute, scope: Scope, receive: Receive) -> bytes | Response:
        self.service.accept()
        headers = dict(reversed(scope["headers"]))  # the first value of a repeated name
        check_content_type(headers.get(b"content-type", b""))
        body = await whole_body(receive)
        if encoding := headers.get(b"content-encoding"):
            body = await decoded(body, encoding, self.service.settings.max_body_mb)
        compute = self._compute_large if is_large(body) else self._compute
        return await self._watches.while_connected(receive, compute(route, body))

    async def _compute(self, route: JSONRoute, body: bytes) -> bytes | Response:
        answer = await route.handler(parse(route.body_type, body), self.service)
        return answer if isinstance(answer, Response) else write(answer)

    async def _compute_large(self, route: JSONRoute, body: bytes) -> bytes | Response:
        worker = self.service.worker
        parsed = await worker.run(parse, route.body_type, body)
        answer = await route.handler(parsed, self.service)
        return answer if isinstance(answer, bytes | Response) else await worker.run(write, answer)


def is_large(body: bytes) -> bool:
    """Whether parsing the body would block the event loop for too long."""
    return len(body) >= LARGE_BODY_BYTES or body.count(b",") >= LARGE_BODY_COMMAS


def check_content_type(given: bytes) -> None:
    if given != b"application/json" and given.partition(b";")[0].strip().lower() != b"application/json":
        raise UnsupportedMediaTypeError(f"content-type is {given.decode('latin-1')!r}; send application/json")


async def decoded(body: bytes, encoding: bytes, max_mb: float) -> bytes:
    """Decompresses a gzip or deflate body off the event loop, up to the limit of `max_mb` MB.

    Raises UnsupportedMediaTypeError, BodyTooLargeError or InvalidJSONError.
    """
    name = encoding.strip().lower()
    if name == b"identity":
        return body
    if name not in {b"gzip", b"x-gzip", b"deflate"}:
        raise UnsupportedMediaTypeError(
            f"content-encoding is {encoding.decode('latin-1')[:100]!r}; send the body as it is, or with gzip or deflate"
        )
    return await asyncio.to_thread(decompress, body, max_mb)


def decompress(body: bytes, max_mb: float) -> bytes:
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, detected by the first bytes
    try:
        content = stream.decompress(body, int(max_mb * 1e6) + 1)
    except zlib.error as error:
        raise InvalidJSONError(f"the body cannot be decompressed ({error}); send valid gzip or deflate") from None
    if len(content) > max_mb * 1e6:
        raise BodyTooLargeError(f"the body is over the limit of {max_mb:g} MB when decompressed; split it")
    if not stream.eof:
        raise InvalidJSONError("the body cannot be decompressed (it is cut off); send all of it")
    if stream.unused_data:
        raise InvalidJSONError(
            f"the body has {len(stream.unused_data)} bytes after its compressed content; send one gzip member"
        )
    return content


async def whole_body(receive: Receive) -> bytes:
    """Reads the whole body. Raises ClientGoneError if the client disconnects before its end."""
    parts = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)
