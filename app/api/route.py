"""The way of a native route: the body is parsed once and the answer is written once, large ones in the worker process.

FastAPI keeps the signatures, the docs and the routing of everything else. Its own way through a request (nine layers, the
standard library's JSON, a second validation, dependencies, a validation of the answer) costs several times what a small
request's score does, and for a trainer's 20 MB body holds up everybody else.
"""

from collections.abc import Callable, Iterable
from typing import Any

from fastapi.routing import APIRoute, APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.bodies import parse, write
from app.api.errors import CLIENT_CLOSED_REQUEST, ClientGoneError, error_response
from app.api.inputs import get_service
from app.errors import InvalidInputError, RequestError
from app.record import note_error
from app.schemas import ErrorBody

LARGE_BODY_BYTES = 1_000_000
"""From here on a body is parsed, and its answer written, in the worker process: it would hold the interpreter for 10 ms."""
JSON_TYPE = (b"content-type", b"application/json")


class JSONRoute(APIRoute):
    """Calls `endpoint(body, request, service)` with the parsed body; the endpoint returns a model, or a plain dict of one.

    Where there is a body there are neither dependencies to be closed nor an answer to be validated, and what is raised
    on purpose is answered here: so the route is a whole ASGI app, which needs none of the app's layers around it.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if self.body_field is not None:
            self.app = self.answer

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            content = await self._content(Request(scope, receive, send))
        except RequestError as error:
            note_error(error)
            await self.answer_error(error)(scope, receive, send)
        except (ClientGoneError, ClientDisconnect):  # before its answer, before the end of its body
            await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)
        else:
            headers = [JSON_TYPE, (b"content-length", b"%d" % len(content))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": content})

    async def _content(self, request: Request) -> bytes:
        service = get_service(request)
        service.accept()
        refuse_other_types(request.scope)
        assert self.body_field is not None
        body_type: type[Any] = self.body_field.field_info.annotation  # type: ignore[assignment]
        received = await whole_body(request.receive)
        if len(received) < LARGE_BODY_BYTES:
            return write(await self.endpoint(body=parse(body_type, received), request=request, service=service))
        body = await service.worker.run(parse, body_type, received)
        return await service.worker.run(write, await self.endpoint(body=body, request=request, service=service))

    @staticmethod
    def answer_error(error: RequestError) -> Response:
        """The API's response to the error."""
        return error_response(error)


def refuse_other_types(scope: Scope) -> None:
    given = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    if given != b"application/json" and given.partition(b";")[0].strip().lower() != b"application/json":
        raise InvalidInputError(f"content-type is {given.decode('latin-1')!r}; send application/json")


async def whole_body(receive: Receive) -> bytes:
    """Raises ClientDisconnect where its client leaves before it is whole."""
    parts = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Direct:
    """Takes a request to the JSON route with its path; what has none goes to `app`, FastAPI's own way."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self.app = app
        json_routes = [route for route in routes if isinstance(route, JSONRoute) and route.body_field is not None]
        self.routes = {(method, route.path): route for route in json_routes for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self.app(scope, receive, send)
        else:
            scope["route"] = route
            await route.answer(scope, receive, send)


def native_router() -> APIRouter:
    """For routes of the native API: their way of reading bodies, and the errors that they document."""
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody} for status in (400, 401, 413, 422, 500, 503, 504)
    }
    return APIRouter(route_class=JSONRoute, responses=responses)
