"""Every error that the service raises on purpose, with the code and the status that a client sees.

    RewardServiceError
      StartError                        the process does not start; printed as one line
        ModelRefusedError
          UndeclaredHeadError           a declaration may help
      TrainingError                     a training run that cannot begin or go on; printed as one line
      RequestError                      answered as {"error": {"code", "message", "item"}}
        InvalidJSONError         400    invalid_json
        UnauthorizedError        401    unauthorized
        ForbiddenError           403    forbidden
        NotFoundError            404    not_found
        MethodNotAllowedError    405    method_not_allowed
        ReloadInProgressError    409    reload_in_progress
        BodyTooLargeError        413    body_too_large
        InvalidInputError        422    invalid_input
          UnsupportedMediaTypeError 415 unsupported_media_type
          TooLongError           422    too_long
          NonFiniteScoreError    422    nonfinite_score
        ReloadRefusedError       422    reload_refused
        InferenceFailedError     500    inference_failed
        UnavailableError         503    (with Retry-After)
          NotReadyError          503    not_ready
          OverloadedError        503    overloaded
          ShuttingDownError      503    shutting_down
        DeadlineExceededError    504    deadline_exceeded

The core raises these; `app.api.errors` turns them into responses. A message names the value and the remedy.
"""

import json
import os
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit
from urllib.request import url2pathname


class RewardServiceError(Exception):
    """Base of everything below."""


class StartError(RewardServiceError):
    """The service cannot start with these settings."""


class ModelRefusedError(StartError):
    """A checkpoint that must not be served."""


class UndeclaredHeadError(ModelRefusedError):
    """A checkpoint whose files do not say how they become a score."""


class TrainingError(RewardServiceError):
    """A training run cannot begin with these options, or go on."""


class RequestError(RewardServiceError):
    """A request that is answered with an error; `item` is the place of the offending item, if there is one."""

    code: ClassVar[str]
    status: ClassVar[int]

    def __init__(self, message: str, item: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.item = item


class InvalidJSONError(RequestError):
    code, status = "invalid_json", 400


class UnauthorizedError(RequestError):
    code, status = "unauthorized", 401


class ForbiddenError(RequestError):
    code, status = "forbidden", 403


class NotFoundError(RequestError):
    code, status = "not_found", 404


class MethodNotAllowedError(RequestError):
    code, status = "method_not_allowed", 405


class ReloadInProgressError(RequestError):
    code, status = "reload_in_progress", 409


class BodyTooLargeError(RequestError):
    code, status = "body_too_large", 413


class InvalidInputError(RequestError):
    code, status = "invalid_input", 422


class UnsupportedMediaTypeError(InvalidInputError):
    """The body's content type or encoding is not one that is read."""

    code, status = "unsupported_media_type", 415


class TooLongError(InvalidInputError):
    code = "too_long"


class NonFiniteScoreError(InvalidInputError):
    """422 and not 500: the same input would fail again, and trainers retry a 5xx for minutes."""

    code = "nonfinite_score"


class ReloadRefusedError(RequestError):
    """The checkpoint must not be served, and the same one would be refused again; the old one stays."""

    code, status = "reload_refused", 422


class InferenceFailedError(RequestError):
    code, status = "inference_failed", 500


class UnavailableError(RequestError):
    """503 and not 429: some trainers never retry a 4xx."""

    status = 503
    retry_after_seconds: ClassVar[int] = 1


class NotReadyError(UnavailableError):
    code = "not_ready"


class OverloadedError(UnavailableError):
    code = "overloaded"


class ShuttingDownError(UnavailableError):
    code = "shutting_down"
    retry_after_seconds = 5


class DeadlineExceededError(RequestError):
    code, status = "deadline_exceeded", 504


MAX_ERROR_CHARS = 300


def one_line(error: BaseException) -> str:
    """What the error says, cut after 300 characters; a missing key's name alone would say nothing."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        text = f"unknown or missing key {text}"
    text = text or type(error).__name__
    return text if len(text) <= MAX_ERROR_CHARS else f"{text[:MAX_ERROR_CHARS]}..."


def install_command(extra: str) -> str:
    """The command that adds an extra of this package to the environment that runs, in backticks."""
    if find_spec("pip") is None:
        return f"`docker build --build-arg EXTRAS={extra} .` to get an image with it (this environment has no pip)"
    python = os.path.relpath(sys.executable)
    if python.startswith(os.pardir):
        python = sys.executable
    return f"`{python} -m pip install {installed_from()}[{extra}]'`"


def installed_from() -> str:
    """The package as pip would install it again: the directory that it came from, else its name. The quote stays open."""
    record = distribution("reward-service").read_text("direct_url.json") or "{}"
    origin = json.loads(record)
    path = Path(url2pathname(urlsplit(origin.get("url", "")).path))
    if "dir_info" not in origin or not path.is_dir():
        return "'reward-service"
    editable = "--editable " if origin["dir_info"].get("editable") else ""
    directory = os.path.relpath(path)
    return f"{editable}'{path if directory.startswith(os.pardir) else directory}"
