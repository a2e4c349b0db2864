"""Reading a JSON body once, in pydantic's own parser, with errors that name the place.

FastAPI would parse with the standard library first and validate the result; for a trainer's 20 MB body this is several
times the work. The route below hands FastAPI a body that is already a model, so that signatures and docs stay its own.
"""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request
from starlette.responses import Response

from app.errors import InvalidInputError, InvalidJSONError, RequestError

Model = TypeVar("Model", bound=BaseModel)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ParsedRequest(Request):
    """A request whose JSON is the model that was made of it."""

    parsed: BaseModel

    async def json(self) -> BaseModel:
        return self.parsed


class JSONRoute(APIRoute):
    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler
        body_type: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]

        async def handle(request: Request) -> Response:
            content_type = request.headers.get("content-type", "")
            if content_type.partition(";")[0].strip().lower() != "application/json":
                raise InvalidInputError(f"content-type is {content_type!r}; send application/json")
            request = ParsedRequest(request.scope, request.receive)
            request.parsed = parse(body_type, await request.body())
            return await handler(request)

        return handle


def parse(body_type: type[Model], body: bytes) -> Model:
    """Raises InvalidJSONError or InvalidInputError."""
    try:
        return body_type.model_validate_json(body)
    except ValidationError as error:
        raise describe(error) from None


def describe(error: ValidationError) -> RequestError:
    """The first of the errors in the words of the API, with the number of the others."""
    first, *others = error.errors(include_url=False)
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
