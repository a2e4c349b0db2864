"""Parses JSON bodies and writes JSON answers, both in pydantic's core, and describes what is wrong with a body.

Imports neither torch nor the service, because the worker process for large bodies imports it.
"""

from codecs import BOM_UTF8
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from app.api.validation_messages import first_error, location_of, reason
from app.errors import InvalidInputError, InvalidJSONError, RequestError

Model = TypeVar("Model", bound=BaseModel)


def parse(body_type: type[Model], body: bytes) -> Model:
    """Parses JSON in UTF-8, with or without a byte order mark. Raises InvalidJSONError or InvalidInputError."""
    try:
        return body_type.model_validate_json(body.removeprefix(BOM_UTF8))
    except ValidationError as error:
        raise describe(error) from None


def write(answer: BaseModel | dict[str, Any] | bytes) -> bytes:
    """The answer as JSON; bytes are JSON already."""
    if isinstance(answer, bytes):
        return answer
    if isinstance(answer, dict):
        return to_json(answer, inf_nan_mode="null")  # as pydantic writes a model
    return answer.__pydantic_serializer__.to_json(answer)


def describe(error: ValidationError) -> RequestError:
    """The first of pydantic's errors in the API's wording, with the number of the others. Unknown fields come first."""
    first, more = first_error(error.errors(include_url=False))
    if first["type"] == "json_invalid":
        return InvalidJSONError(f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    message = f"{location_of(first) or 'the body'} {reason(first)}".strip()
    return InvalidInputError(f"{message} (and {more} more)" if more else message, item_of(first))


def item_of(error: ErrorDetails) -> int | None:
    """The index of the item at fault: 3 for an error in `items[3]`."""
    location = error["loc"]
    item = location[1] if len(location) > 1 and location[0] in {"items", "pairs"} else None
    return item if isinstance(item, int) else None
