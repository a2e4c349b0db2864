"""Bytes to a body, once, and an answer to bytes, once, both in pydantic's own core; and what is wrong with a body, in words.

Knows neither torch nor the service: the worker process that reads large bodies imports it.
"""

from codecs import BOM_UTF8
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from app.api.validation_messages import first_error, location_of, reason
from app.errors import InvalidInputError, InvalidJSONError, RequestError

Model = TypeVar("Model", bound=BaseModel)


def parse(body_type: type[Model], body: bytes) -> Model:
    """A body of JSON in UTF-8, with or without a byte order mark. Raises InvalidJSONError or InvalidInputError."""
    try:
        return body_type.model_validate_json(body.removeprefix(BOM_UTF8))
    except ValidationError as error:
        raise describe(error) from None


def write(answer: BaseModel | dict[str, Any] | bytes) -> bytes:
    """JSON; bytes are JSON already."""
    if isinstance(answer, bytes):
        return answer
    if isinstance(answer, dict):
        return to_json(answer, inf_nan_mode="null")  # as a model's
    return answer.__pydantic_serializer__.to_json(answer)


def describe(error: ValidationError) -> RequestError:
    """The first of the errors in the words of the API, with the number of the others; a misspelt field before all."""
    first, more = first_error(error.errors(include_url=False))
    if first["type"] == "json_invalid":
        return InvalidJSONError(f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    message = f"{location_of(first) or 'the body'} {reason(first)}".strip()
    return InvalidInputError(f"{message} (and {more} more)" if more else message, item_of(first))


def item_of(error: ErrorDetails) -> int | None:
    """3 for what is wrong in `items[3]`."""
    location = error["loc"]
    item = location[1] if len(location) > 1 and location[0] in {"items", "pairs"} else None
    return item if isinstance(item, int) else None
