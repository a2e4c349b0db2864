"""Every error as the one body of the native routes."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.errors import (
    BodyTooLargeError,
    InferenceFailedError,
    InvalidInputError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
    UnauthorizedError,
    UnavailableError,
)

CLIENT_CLOSED_REQUEST = 499


class ClientGoneError(Exception):
    """The client left before its answer; nobody reads the response."""


def error_response(error: RequestError) -> JSONResponse:
    headers = {}
    if isinstance(error, UnavailableError):
        headers["retry-after"] = str(error.retry_after_seconds)
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    detail: dict[str, object] = {"code": error.code, "message": error.message}
    if error.item is not None:
        detail["item"] = error.item
    return JSONResponse({"error": detail}, error.status, headers)


def install(app: FastAPI, max_body_mb: float) -> None:
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
            case 413:
                mapped = BodyTooLargeError(
                    f"the body is over the limit of {max_body_mb:g} MB; split it, or raise REWARD_MAX_BODY_MB"
                )
            case _:
                mapped = InvalidInputError(str(error.detail))
        return error_response(mapped)

    def client_gone(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    def unexpected(_: Request, __: Exception) -> Response:
        return error_response(InferenceFailedError("an unexpected fault; the log has it"))

    app.add_exception_handler(RequestError, request_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientGoneError, client_gone)
    app.add_exception_handler(Exception, unexpected)
