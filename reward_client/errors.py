"""Every exception that the client raises on purpose. It never answers with a made-up score.

RewardClientError
  InvalidItemError (ValueError)   the request cannot be sent as it is; nothing was sent
  BadReplyError                   a 200 that is not this API's
  ConnectionFailedError           no connection, or a broken one, after all attempts
  DeadlineError (TimeoutError)    the client's own deadline passed; `__cause__` is the last attempt's error
  APIError                        the server's error body: status, code, message, item, body
    InvalidRequestError    4xx    the same request would fail again
      UnauthorizedError    401
    UnavailableError       503    overloaded, not ready or shutting down, after all attempts
    ServerFailedError      5xx    any other
"""

from __future__ import annotations

import json
from typing import Any


class RewardClientError(Exception):
    """Base of everything below."""


class InvalidItemError(RewardClientError, ValueError):
    """`item` is the place of the item that cannot be sent, if it is one item's fault."""

    def __init__(self, message: str, item: int | None = None) -> None:
        super().__init__(message)
        self.item = item


class BadReplyError(RewardClientError):
    """What answered is no reward service, or one of another version."""


class ConnectionFailedError(RewardClientError):
    """Nobody answered."""


class DeadlineError(RewardClientError, TimeoutError):
    """The call took longer than it was given."""


class APIError(RewardClientError):
    """The server's own words. `body` is the whole error body, parsed where it is JSON."""

    def __init__(self, status: int, message: str, *, code: str = "", item: int | None = None, body: Any = None) -> None:
        super().__init__(f"{status} {code}: {message}" if code else f"{status}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.item = item
        self.body = body


class InvalidRequestError(APIError):
    """4xx."""


class UnauthorizedError(InvalidRequestError):
    """401."""


class UnavailableError(APIError):
    """503."""


class ServerFailedError(APIError):
    """Any other 5xx."""


def error_of(status: int, content: bytes, first_item: int) -> APIError:
    """The exception for an error reply. `first_item` is the place of the request's first item in the caller's list.

    The body may be the native one, a compatibility route's, or a proxy's page.
    """
    kind: type[APIError] = ServerFailedError
    if status == 503:  # noqa: PLR2004 - HTTP's own
        kind = UnavailableError
    elif 400 <= status < 500:  # noqa: PLR2004
        kind = UnauthorizedError if status == 401 else InvalidRequestError  # noqa: PLR2004
    try:
        body = json.loads(content)
    except ValueError:
        return kind(status, content[:500].decode(errors="replace"), body=content)
    detail = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(detail, dict):
        return kind(status, str(detail), body=body)
    message, item = str(detail.get("message", detail.get("detail", detail))), detail.get("item")
    if isinstance(item, int):
        message = message.replace(f"s[{item}]", f"s[{item + first_item}]", 1)
        item += first_item
    return kind(status, message, code=str(detail.get("code", "")), item=item, body=body)
