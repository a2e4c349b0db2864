"""An HTTP/1.1 keep-alive client that costs as little CPU as asyncio allows.

The client runs on the server's machine, so every microsecond here is taken from the server under test. It supports POST with
a ready-made body, and responses with `Content-Length`; everything else (chunked responses, redirects, TLS) is an error, so that
nothing is silently measured wrong.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import cast

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_HEADER_END = b"\r\n\r\n"


class ProtocolError(Exception):
    """The server's response is not in the form that this client supports."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A request's destination: a path on a local port, and the API key if there is one."""

    port: int
    path: str
    host: str = "127.0.0.1"
    key: str = ""

    def request_bytes(self, body: bytes) -> bytes:
        """Return the bytes of the whole request, so a run's inner loop only writes them."""
        authorization = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{authorization}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("ascii") + body


class Connection(asyncio.Protocol):
    """A connection with one request at a time; `connect` makes it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._received = bytearray()
        self._body_start = 0
        self._message_end = 0

    @classmethod
    async def connect(cls, endpoint: Endpoint) -> "Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, endpoint.host, endpoint.port)
        return connection

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes) -> "asyncio.Future[Response]":
        """Write a request; the future's result is the whole response, its exception a `ConnectionError` or `ProtocolError`."""
        if self._transport is None or self._waiter is not None:
            raise RuntimeError("the connection is closed or still waits for an answer")
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiter

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass of it

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._message_end:
            self._read_head()
        if self._message_end and len(self._received) >= self._message_end:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionError(f"the server closed the connection: {exc}"))

    def _read_head(self) -> None:
        head_end = self._received.find(_HEADER_END)
        if head_end < 0:
            return
        length = _CONTENT_LENGTH.search(self._received, 0, head_end)
        if length is None:
            self._fail(ProtocolError(f"an answer without Content-Length: {bytes(self._received[:head_end])!r}"))
            self.close()
            return
        self._body_start = head_end + len(_HEADER_END)
        self._message_end = self._body_start + int(length[1])

    def _finish(self) -> None:
        status = int(self._received[9:12])
        head = bytes(self._received[: self._body_start])
        response = Response(status, bytes(self._received[self._body_start : self._message_end]), head)
        del self._received[: self._message_end]
        self._message_end = 0
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(response)

    def _fail(self, error: Exception) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
