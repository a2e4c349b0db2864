"""The way of a native route: the body is parsed once and the answer is written once, both in pydantic's own core.

FastAPI keeps the signatures, the docs and the routing. Its own way through a request (the standard library's JSON, a
second validation, dependencies, a validation of the answer) costs several times what a small request's score does, and
for a trainer's 20 MB body holds up everybody else.
"""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi.routing import APIRoute, APIRouter
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request
from starlette.responses import Response

from app.errors import InvalidInputError, InvalidJSONError, RequestError
from app.schemas import ErrorBody

Model = TypeVar("Model", bound=BaseModel)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class JSONRoute(APIRoute):
    """Calls `endpoint(body, request, service)` with the parsed body; the endpoint returns a model."""

    def get_route_handler(self) -> Handler:
        if self.body_field is None:
            return super().get_route_handler()
        endpoint = self.endpoint
        body_type: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]

        async def handle(request: Request) -> Response:
            service = request.app.state.service
            service.accept()
            content_type = request.headers.get("content-type", "")
            if content_type.partition(";")[0].strip().lower() != "application/json":
                raise InvalidInputError(f"content-type is {content_type!r}; send application/json")
            body = parse(body_type, await request.body())
            answer: BaseModel = await endpoint(body=body, request=request, service=service)
            return Response(answer.__pydantic_serializer__.to_json(answer), media_type="application/json")

        return handle


def native_router() -> APIRouter:
    """For routes of the native API: their way of reading bodies, and the errors that they document."""
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody} for status in (400, 401, 413, 422, 500, 503, 504)
    }
    return APIRouter(route_class=JSONRoute, responses=responses)


def parse(body_type: type[Model], body: bytes) -> Model:
    """Raises InvalidJSONError or InvalidInputError."""
    try:
        return body_type.model_validate_json(body)
    except ValidationError as error:
        raise describe(error) from None


def describe(error: ValidationError) -> RequestError:
    """The first of the errors in the words of the API, with the number of the others; a misspelt field before all."""
    first, *others = sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    if first["type"] == "json_invalid":
        return InvalidJSONError(f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    place, item = place_of(first)
    more = len({place_of(other)[0] for other in others} - {place})
    message = f"{place} {reason(first)}".strip()
    return InvalidInputError(f"{message} (and {more} more)" if more else message, item)


def place_of(error: ErrorDetails) -> tuple[str, int | None]:
    """`items[3].prompt` and 3. Parts that name a member of a union or a constraint are pydantic's own and left out."""
    location = error["loc"]
    place = ""
    for i, part in enumerate(location):
        is_unknown_field = error["type"] == "extra_forbidden" and i == len(location) - 1
        if isinstance(part, int):
            place += f"[{part}]"
        elif is_unknown_field or is_own_name(part):
            place += f".{part}" if place else part
    item = location[1] if len(location) > 1 and location[0] in {"items", "pairs"} else None
    return place or "the body", item if isinstance(item, int) else None


def is_own_name(part: str) -> bool:
    return part.isidentifier() and not part[0].isupper() and part not in {"bool", "float", "int", "str"}


def reason(error: ErrorDetails) -> str:
    match error["type"]:
        case "wrong_input":
            return error["msg"]
        case "extra_forbidden":
            return "is unknown; check its spelling against /docs"
        case "missing":
            return "is missing"
        case _:
            value = repr(error["input"])
            shown = value if len(value) <= 40 else f"{value[:40]}..."  # noqa: PLR2004 - enough to recognise it
            return f"is {shown}: {error['msg'][0].lower()}{error['msg'][1:]}"
