"""What stands before every route: the API key, the body's limit, and the count of requests that draining waits for."""

import base64
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import error_response
from app.errors import BodyTooLargeError, UnauthorizedError
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
            await self.app(scope, self._limited(scope, receive), send)
        finally:
            self.service.num_in_flight -= 1

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` that raises once the body is over the limit; at once where its declared length is."""
        limit_mb = self.service.settings.max_body_mb
        declared = Headers(scope=scope).get("content-length", "")
        num_declared, num_received = int(declared) if declared.isdecimal() else 0, 0

        def check(num_bytes: int) -> None:
            if num_bytes > limit_mb * 1e6:
                raise BodyTooLargeError(
                    f"the body is over the limit of {limit_mb:g} MB; split it, or raise REWARD_MAX_BODY_MB"
                )

        async def receive_within_limit() -> Message:
            nonlocal num_received
            check(num_declared)
            message = await receive()
            num_received += len(message.get("body", b""))
            check(num_received)
            return message

        return receive_within_limit

    def _is_known(self, offered: bytes) -> bool:
        """Compares with every key, in constant time each."""
        return sum(hmac.compare_digest(offered, key) for key in self.keys) > 0


def offered_key(headers: Headers) -> bytes:
    """The bearer token, or the password of HTTP Basic (a trainer that sends no header has its URL to hold it)."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip().encode("latin-1")  # the header's bytes as they came
        case "basic":
            try:
                return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
            except ValueError:  # not base64, or not even ASCII
                return b""
    return b""
