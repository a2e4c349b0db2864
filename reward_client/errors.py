"""Every exception that the client raises. The client never returns a made-up score.

RewardClientError
  ConfigurationError (ValueError)   an invalid setting; nothing was sent
  ClientClosedError (RuntimeError)  the client was used after it was closed
  InvalidItemError (ValueError)     an item or option that cannot be sent; nothing was sent
  BadReplyError                     the response is not one of this API
  ConnectionFailedError             no connection, or a broken one, after all attempts
  DeadlineError (TimeoutError)      the deadline passed; `__cause__` is the error of the last attempt
  APIError                          an error response: status, code, message, item, body
    InvalidRequestError    4xx      the same request would fail again
      UnauthorizedError    401
    UnavailableError       408, 429, 503   busy, loading or shutting down, after all attempts
    ServerFailedError      5xx      any other

All of them can be pickled with their fields, so a worker process can pass them to its parent.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

UNAVAILABLE = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


def restore(kind: type[RewardClientError], args: tuple[Any, ...], fields: dict[str, Any]) -> RewardClientError:
    """An error as it was pickled, without calling its `__init__`, whose parameters differ from `args`."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class RewardClientError(Exception):
    """Base of all errors below."""

    def __reduce__(self) -> tuple[Any, ...]:
        return restore, (type(self), self.args, self.__dict__)


class ConfigurationError(RewardClientError, ValueError):
    """A URL, key, proxy, deadline or limit is invalid."""


class ClientClosedError(RewardClientError, RuntimeError):
    """The client was closed before or during the call."""


class InvalidItemError(RewardClientError, ValueError):
    """`item` is the index of the item that cannot be sent, if a single item is at fault."""

    def __init__(self, message: str, item: int | None = None) -> None:
        super().__init__(message)
        self.item = item


class BadReplyError(RewardClientError):
    """The response is not from a reward service, or from a version that this client does not know."""


class ConnectionFailedError(RewardClientError):
    """The connection was refused, broke, or timed out."""


class DeadlineError(RewardClientError, TimeoutError):
    """The request was not answered within its deadline."""


class APIError(RewardClientError):
    """The server's error response. `body` is the whole body: parsed if it is JSON, else bytes."""

    def __init__(self, status: int, message: str, *, code: str = "", item: int | None = None, body: Any = None) -> None:
        super().__init__(f"{status} {code}: {message}" if code else f"{status}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.item = item
        self.body = body


class InvalidRequestError(APIError):
    """4xx other than 408 and 429."""


class UnauthorizedError(InvalidRequestError):
    """401: no API key, or a wrong one."""


class UnavailableError(APIError):
    """408, 429 or 503: the server is busy, loading or shutting down."""


class ServerFailedError(APIError):
    """5xx other than 503."""


def error_of(status: int, content: bytes, first_item: int) -> APIError:
    """The exception for an error response of a native route, a compatibility route, or a proxy.

    `first_item` is the index of the request's first item in the caller's list; the error names the item by its index there.
    """
    kind = class_of(status)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return kind(status, content[:500].decode(errors="replace"), body=content)
    detail = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(detail, dict):
        return kind(status, str(detail), body=body)
    message, item = str(detail.get("message", detail.get("detail", detail))), detail.get("item")
    if isinstance(item, int) and not isinstance(item, bool):
        message = renumber(message, item, item + first_item)
        item += first_item
    else:
        item = None
    return kind(status, message, code=str(detail.get("code", "")), item=item, body=body)


def class_of(status: int) -> type[APIError]:
    if status in UNAVAILABLE:
        return UnavailableError
    if status == HTTPStatus.UNAUTHORIZED:
        return UnauthorizedError
    is_client_error = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    return InvalidRequestError if is_client_error else ServerFailedError


def renumber(message: str, item: int, index: int) -> str:
    """The message with `items[item]` (or `pairs[item]`) named by another index."""
    return message.replace(f"s[{item}]", f"s[{index}]", 1)
