"""Turns errors into responses: the error body of the native routes, and the mapping of Starlette's own exceptions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.schemas import ErrorBody
from app.errors import (
    InferenceFailedError,
    InvalidInputError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
    UnauthorizedError,
    UnavailableError,
)
from app.observability.request_context import current_request

CLIENT_CLOSED_REQUEST = 499
MAX_MESSAGE_CHARS = 500


@dataclass(frozen=True, slots=True)
class ErrorFormat:
    """How a group of routes writes its errors, and their description in /docs."""

    write: Callable[[RequestError], Response]
    body: type[BaseModel]
    statuses: tuple[int, ...]
    tags: tuple[str, ...] = ()

    def responses(self) -> dict[int | str, dict[str, Any]]:
        """FastAPI's `responses`. The access rules answer 401 and 403 in the native format on every route."""
        access: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (401, 403)}
        return access | {status: {"model": self.body} for status in self.statuses}


def error_response(error: RequestError) -> JSONResponse:
    """The native error response; also sets the error's code in the request's context."""
    if context := current_request():
        context.code = error.code
    headers = {}
    if isinstance(error, UnavailableError):
        headers["retry-after"] = str(error.retry_after_seconds)
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    detail: dict[str, object] = {"code": error.code, "message": shorten(error.message)}
    if error.item is not None:
        detail["item"] = error.item
    return JSONResponse({"error": detail}, error.status, headers)


def shorten(message: str) -> str:
    """The message on one line. A long one loses its middle, which holds the value, and keeps the remedy at its end."""
    if len(message) > MAX_MESSAGE_CHARS:
        half = MAX_MESSAGE_CHARS // 2
        message = f"{message[:half]} ... {message[-half:]}"
    return " ".join(message.split())


NATIVE_ERRORS = ErrorFormat(error_response, ErrorBody, (400, 413, 415, 422, 500, 503, 504), ("rewards",))


def install(app: FastAPI) -> None:
    """Registers the exception handlers with FastAPI."""

    def request_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return error_response(error)

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        match error.status_code:
            case 404:
                mapped: RequestError = NotFoundError(f"there is no {path}; /docs lists the routes")
            case 405:
                mapped = MethodNotAllowedError(f"{path} does not take {request.method}; /docs lists the routes")
            case _:
                mapped = InvalidInputError(str(error.detail))
        response = error_response(mapped)
        response.headers.update(error.headers or {})  # such as Allow
        return response

    def unexpected_error(_: Request, __: Exception) -> Response:
        return error_response(InferenceFailedError("an unexpected error; see the log"))

    app.add_exception_handler(RequestError, request_error)
    app.add_exception_handler(Exception, unexpected_error)  # Starlette raises it again, for the log
    app.add_exception_handler(HTTPException, http_error)
