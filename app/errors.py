"""Every error that the service raises on purpose, with the code and the status that a client sees.

    RewardServiceError
      StartError                        the process does not start; printed as one line
        ModelRefusedError
      RequestError                      answered as {"error": {"code", "message", "item"}}
        InvalidJSONError         400    invalid_json
        UnauthorizedError        401    unauthorized
        NotFoundError            404    not_found
        MethodNotAllowedError    405    method_not_allowed
        BodyTooLargeError        413    body_too_large
        InvalidInputError        422    invalid_input
          TooLongError           422    too_long
          NonFiniteScoreError    422    nonfinite_score
        InferenceFailedError     500    inference_failed
        UnavailableError         503    (with Retry-After)
          NotReadyError          503    not_ready
          OverloadedError        503    overloaded
          ShuttingDownError      503    shutting_down
        DeadlineExceededError    504    deadline_exceeded

The core raises these; `app.api.errors` turns them into responses. A message names the value and the remedy.
"""

from typing import ClassVar


class RewardServiceError(Exception):
    """Base of everything below."""


class StartError(RewardServiceError):
    """The service cannot start with these settings."""


class ModelRefusedError(StartError):
    """A checkpoint that must not be served."""


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


class NotFoundError(RequestError):
    code, status = "not_found", 404


class MethodNotAllowedError(RequestError):
    code, status = "method_not_allowed", 405


class BodyTooLargeError(RequestError):
    code, status = "body_too_large", 413


class InvalidInputError(RequestError):
    code, status = "invalid_input", 422


class TooLongError(InvalidInputError):
    code = "too_long"


class NonFiniteScoreError(InvalidInputError):
    """422 and not 500: the same input would fail again, and trainers retry a 5xx for minutes."""

    code = "nonfinite_score"


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
