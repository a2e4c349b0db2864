"""What stands before every route: the API key, and the count of requests in flight that draining waits for."""

import base64
import binascii
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.errors import error_response
from app.errors import UnauthorizedError
from app.service import Service

OPEN_PATHS = frozenset({"/health", "/ready"})


class Gate:
    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service
        self.keys = [key.encode() for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        if self.keys and not self._is_known(offered_key(Headers(scope=scope))):
            error = UnauthorizedError(
                "no or wrong API key; send `Authorization: Bearer KEY`, or the key as the password of HTTP Basic"
            )
            await error_response(error)(scope, receive, send)
            return
        self.service.num_in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.service.num_in_flight -= 1

    def _is_known(self, offered: bytes) -> bool:
        """Compares with every key, in constant time each."""
        return sum(hmac.compare_digest(offered, key) for key in self.keys) > 0


def offered_key(headers: Headers) -> bytes:
    """The bearer token, or the password of HTTP Basic (a trainer that sends no header has its URL to hold it)."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip().encode()
        case "basic":
            try:
                return base64.b64decode(value, validate=True).partition(b":")[2]
            except binascii.Error:
                return b""
    return b""
