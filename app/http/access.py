"""Access rules for every route: API key or host name, the size limit of bodies, and the count of requests in flight."""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.docs import is_for_browser
from app.api.errors import error_response
from app.errors import BodyTooLargeError, ForbiddenError, RequestError, UnauthorizedError
from app.service import Service
from app.settings import PAGE_PATH, Settings

OPEN_PATHS = frozenset({"/health", "/ready", "/ping"})
PORT = re.compile(r":\d*$")
METRICS_PATH = "/metrics"
MAX_CACHED_HOST_BYTES = 256
"""The longest Host header whose check is cached. A host name has at most 253 characters, but a header may have 64 KB."""
Headers = Mapping[bytes, bytes]


class AccessMiddleware:
    """Rejects requests without a valid key or host name, and limits the size of bodies. Probes are exempt."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service
        self.keys = [digest(key.encode()) for key in service.settings.api_keys]
        self.allowed_hosts = allowed_hosts(service.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        for_page = is_page(scope["path"], self.service.settings)
        headers = dict(reversed(scope["headers"]))  # the first value of a repeated name
        if error := self._find_error(scope["method"], headers):
            response = error_response(error)
            is_browser = for_page or is_for_browser(scope["path"])
            if is_browser and isinstance(error, UnauthorizedError):  # browsers prompt for a password only for Basic
                response.headers["www-authenticate"] = 'Basic realm="reward-service", charset="UTF-8"'
            await response(scope, receive, send)
            return
        limited = self._limited(headers, receive)
        if scope["path"] == METRICS_PATH or for_page:  # draining does not wait for these
            await self.app(scope, limited, send)
            return
        self.service.num_in_flight += 1
        try:
            await self.app(scope, limited, send)
        finally:
            self.service.num_in_flight -= 1

    def _find_error(self, method: str, headers: Headers) -> RequestError | None:
        if headers.get(b"sec-fetch-site") == b"cross-site" and method not in {"GET", "HEAD"}:
            return ForbiddenError(
                "the request comes from a web page of another site; send it from a program, or from the page /ui"
            )
        if self.keys:
            if not self._is_known(offered_key(headers)):
                return UnauthorizedError(
                    "missing or wrong API key; send `Authorization: Bearer KEY`, or the key as the password of HTTP Basic"
                )
        elif self.allowed_hosts is not None and not is_allowed(headers.get(b"host", b""), self.allowed_hosts):
            host = headers[b"host"].decode("latin-1")[:100]
            return ForbiddenError(
                f"the request is for host {host!r}, not for this service; name it in REWARD_ALLOWED_HOSTS, "
                "or set REWARD_API_KEYS"
            )
        return None

    def _limited(self, headers: Headers, receive: Receive) -> Receive:
        """A `receive` that raises once the body exceeds the limit, or at once if the declared length does.

        The server reads no more than the declared length, so only bodies without one are counted.
        """
        limit_mb = self.service.settings.max_body_mb
        declared = headers.get(b"content-length", b"")
        num_declared = int(declared) if declared.isdigit() else None
        if num_declared is not None and num_declared <= limit_mb * 1e6:
            return receive
        num_received = num_declared or 0

        async def receive_within_limit() -> Message:
            nonlocal num_received
            message = await receive() if num_received <= limit_mb * 1e6 else {}
            num_received += len(message.get("body", b""))
            if num_received > limit_mb * 1e6:
                raise BodyTooLargeError(
                    f"the body is over the limit of {limit_mb:g} MB; split it, or raise REWARD_MAX_BODY_MB"
                )
            return message

        return receive_within_limit

    def _is_known(self, offered: bytes) -> bool:
        """Compares with every key in constant time, so that timing reveals neither a key's content nor its length."""
        return sum(hmac.compare_digest(digest(offered), key) for key in self.keys) > 0


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """The names that a Host header may have besides those without a dot; None: any."""
    if settings.allowed_hosts is None:
        return frozenset() if settings.is_loopback else None
    return None if "*" in settings.allowed_hosts else frozenset(settings.allowed_hosts)


def is_allowed(host_header: bytes, allowed: frozenset[str]) -> bool:
    """`is_allowed_host`, cached for headers of usual length."""
    check = is_allowed_host if len(host_header) <= MAX_CACHED_HOST_BYTES else is_allowed_host.__wrapped__
    return check(host_header, allowed)


@lru_cache(maxsize=256)
def is_allowed_host(host_header: bytes, allowed: frozenset[str]) -> bool:
    """Whether the Host header is safe from DNS rebinding.

    In that attack, a web page's own domain name resolves to 127.0.0.1, and the browser sends that name as Host: a public
    name, so one with a dot. IP addresses, localhost, names without a dot and requests without a Host header are safe.
    """
    host = PORT.sub("", host_header.decode("latin-1").strip().lower()).strip("[]").removesuffix(".")
    if "." not in host or host.endswith(".localhost") or host in allowed:
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_page(path: str, settings: Settings) -> bool:
    """Whether the path belongs to the playground, whose event streams stay open as long as a browser shows it."""
    return settings.ui and (path == PAGE_PATH or path.startswith(f"{PAGE_PATH}/"))


def offered_key(headers: Headers) -> bytes:
    """The bearer token, or the password of HTTP Basic (trainers that send no headers can put it into the URL)."""
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    match scheme.lower():
        case b"bearer":
            return value.strip()
        case b"basic":
            try:
                return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
            except ValueError:  # not base64, or not ASCII
                return b""
    return b""
