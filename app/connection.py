"""One client's connection: uvicorn's, with limits to what a client may leave unfinished, and to how many begin at once.

uvicorn alone waits for ever for the rest of a request that has begun, or for the first one, and takes header bytes without
end; each such client keeps a file descriptor and memory. `sweep` is called every second or so.

And it begins every request that has arrived in one turn of the event loop: with thousands, nothing else has its turn for
seconds, /health included. `Turns` lets a few begin each time.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.outbox import GatheringTransport, Outbox

HEAD_SECONDS = 20.0
"""For the first byte of a connection to the end of a request's head."""
MAX_HEAD_BYTES = 65536
FEW = 64
"""Requests that begin in one turn of the event loop, and that are no crowd when they wait: a turn of some 5 ms."""
A_TURN = 8
"""Requests of a crowd that begin in one turn."""
UNASKED = b"GET "
"""What begins so does not wait for its turn: it is quick, and orchestrators wait for it."""


class Turns:
    """Whose request begins when more have arrived than may begin at once: the oldest, `A_TURN` at a time in a crowd."""

    def __init__(self) -> None:
        self._waiting: deque[Connection] = deque()
        self._num_left = FEW
        self._is_scheduled = False

    def take(self, connection: "Connection") -> bool:
        """Whether its request may begin at once; otherwise `begin_held` is called when it is its turn."""
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._next)
        if self._num_left and not self._waiting:
            self._num_left -= 1
            return True
        self._waiting.append(connection)
        return False

    def _next(self) -> None:
        num_begun = len(self._waiting) if len(self._waiting) <= FEW else A_TURN
        self._num_left = FEW - num_begun
        self._is_scheduled = num_begun > 0
        if self._is_scheduled:  # before they begin: a fault in one must not keep the others for ever
            asyncio.get_running_loop().call_soon(self._next)
        for _ in range(num_begun):
            self._waiting.popleft().begin_held()


class Connection(HttpToolsProtocol):
    """Knows since when the client owes it the rest of a request, or the reading of an answer."""

    transport: GatheringTransport

    def __init__(self, *args: Any, turns: Turns, outbox: Outbox, **options: Any) -> None:
        super().__init__(*args, **options)
        self._turns = turns
        self._outbox = outbox
        self._held = b""
        self._owed_since: float | None = time.monotonic()
        self._stalled_since: float | None = None
        self._num_taken = 0  # of what is written, by the system, at the last check
        self._in_head = True
        self._num_head_bytes = 0
        self._num_begun = 0  # requests, by what was received last
        self._is_between = True  # requests

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own
        super().connection_made(GatheringTransport(transport, self._outbox))

    def data_received(self, data: bytes) -> None:
        if self._held:  # uvicorn resumes reading when an answer before is done
            self._held += data
        elif self._in_head and not data.startswith(UNASKED) and not self._turns.take(self):
            self.transport.pause_reading()
            self._unset_keepalive_if_required()  # it is idle no more
            self._held = data
        else:
            self._feed(data)

    def begin_held(self) -> None:
        data, self._held = self._held, b""
        if self.parser is not None and not self.transport.is_closing():
            self._feed(data)
            if not self.flow.read_paused:
                self.transport.resume_reading()

    def _feed(self, data: bytes) -> None:
        was_in_head, self._num_begun, self._is_between = self._in_head, 0, False
        super().data_received(data)
        if not self._in_head or self._is_between:
            return
        if self._owed_since is None:  # such as a line feed after a request, which begins none
            self._owed_since = time.monotonic()
        if was_in_head and self._num_begun <= 1:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, "head_too_large", f"the request's head is over the limit of {MAX_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._owed_since = time.monotonic()
        self._in_head, self._num_head_bytes, self._is_between = True, 0, False
        self._num_begun += 1

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._owed_since = None
        self._in_head = self._is_between = True  # in the next one's, of which nothing has come yet
        super().on_message_complete()

    def check(self, now: float, request_seconds: float) -> None:
        """Ends the connection of a client that has not sent its request, or read its answer, in time."""
        if self.transport.is_closing() or self._held:
            return
        if self._owed_since is not None:
            limit = min(HEAD_SECONDS, request_seconds) if self._in_head else request_seconds
            if now - self._owed_since > limit:
                self._refuse(408, "request_timeout", f"the request was not whole within {limit:g} s; send it faster")
        num_taken, self._num_taken = self._num_taken, self.transport.num_taken
        if not self.transport.get_write_buffer_size():
            self._stalled_since = None
        elif self._stalled_since is None or self._num_taken > num_taken:  # slow is not stalled
            self._stalled_since = now
        elif now - self._stalled_since > request_seconds:
            self.transport.abort()

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Closes; with an answer where something was asked and no answer is on its way."""
        if self._in_head:
            may_answer = self._num_head_bytes > 0 and (self.cycle is None or self.cycle.response_complete)
        else:
            # Behind others, the one before it is to be answered first.
            may_answer = not self.cycle.response_started and not self.pipeline
        if may_answer:
            body = json.dumps({"error": {"code": code, "message": message}}).encode()
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


def sweep(connections: Iterable[object], request_seconds: float) -> None:
    now = time.monotonic()
    for connection in list(connections):
        if isinstance(connection, Connection):
            connection.check(now, request_seconds)
