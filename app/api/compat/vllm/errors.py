"""vLLM's error body, also for SGLang, whose clients read the message."""

from pydantic import BaseModel
from starlette.responses import Response

from app.api.compat.dialect import COMPAT_STATUSES, COMPAT_TAGS, error_json
from app.api.errors import ErrorFormat
from app.errors import InvalidInputError, InvalidJSONError, RequestError, TooLongError

TYPES = {400: "BadRequestError", 404: "NotFoundError", 413: "BadRequestError", 503: "ServiceUnavailableError"}


class VLLMErrorDetail(BaseModel):
    message: str
    type: str
    param: None = None
    code: int


class VLLMError(BaseModel):
    error: VLLMErrorDetail


def write_error(error: RequestError) -> Response:
    """{"error": {"message", "type", "param", "code"}}; an invalid request is 400."""
    is_bad = isinstance(error, InvalidInputError | InvalidJSONError)
    status = 400 if is_bad else error.status
    kind = TYPES.get(status, "InternalServerError")
    message = error.message
    if isinstance(error, TooLongError):
        message = f"{message}. Please reduce the length of the input prompt."  # clients search for this sentence
    detail = {"message": message, "type": kind, "param": None, "code": status}
    return error_json({"error": detail}, status, error)


ERRORS = ErrorFormat(write_error, VLLMError, COMPAT_STATUSES, COMPAT_TAGS)
