"""Every error as the one body of the native routes."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.errors import (
    InvalidInputError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
    UnauthorizedError,
    UnavailableError,
)
from app.record import note_error

CLIENT_CLOSED_REQUEST = 499
MAX_MESSAGE_CHARS = 500


class ClientGoneError(Exception):
    """The client left before its answer; nobody reads the response."""


def error_response(error: RequestError) -> JSONResponse:
    note_error(error)
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
    """One line that shows both ends, for the value may be huge and the remedy comes last."""
    if len(message) > MAX_MESSAGE_CHARS:
        half = MAX_MESSAGE_CHARS // 2
        message = f"{message[:half]} ... {message[-half:]}"
    return " ".join(message.split())


def install(app: FastAPI) -> None:
    """Registers the handlers; Starlette's own exceptions are mapped by their status."""

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

    app.add_exception_handler(RequestError, request_error)
    app.add_exception_handler(HTTPException, http_error)
