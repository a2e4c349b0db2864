"""One client's connection: uvicorn's, with time and size limits for slow clients, and a limit of requests started per tick.

Plain uvicorn waits forever for the first request or the rest of one, and accepts headers of any size; each such client keeps
a file descriptor and memory. The server calls `sweep` about every second to check the limits.

Plain uvicorn also starts all requests that arrive in one tick of the event loop at once. With thousands, nothing else runs
for seconds, not even /health. `RequestPacer` starts a limited number per tick.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.errors import one_line
from app.http.framing import BadHeadError, check_head, origin_form
from app.http.write_buffer import CoalescingTransport, WriteBuffer

HEAD_SECONDS = 20.0
"""The time limit from the start of a connection or a request to the end of the request's head."""
MAX_HEAD_BYTES = 65536
MAX_STARTS_PER_TICK = 64
"""The most requests that start per tick of the event loop if no more are waiting: a tick then takes about 5 ms."""
MAX_STARTS_PER_TICK_UNDER_LOAD = 8
"""The number of requests that start per tick if more are waiting."""
PRIORITY_PREFIX = b"GET "
"""Requests that begin with this start at once: they are quick, and orchestrators wait for them."""
MAX_HELD_BYTES = 65536
"""How many bytes a client may send before the answer to an earlier request; then reading pauses."""


class RequestPacer:
    """Starts requests in the order of their arrival, a limited number per tick of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Connection] = deque()
        self._num_left = MAX_STARTS_PER_TICK
        self._is_scheduled = False

    def take(self, connection: "Connection") -> bool:
        """Whether the connection may start its request now; if not, its `begin_held` is called in a later tick."""
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._next)
        if self._num_left and not self._waiting:
            self._num_left -= 1
            return True
        self._waiting.append(connection)
        return False

    def _next(self) -> None:
        num_begun = len(self._waiting) if len(self._waiting) <= MAX_STARTS_PER_TICK else MAX_STARTS_PER_TICK_UNDER_LOAD
        self._num_left = MAX_STARTS_PER_TICK - num_begun
        self._is_scheduled = num_begun > 0
        if self._is_scheduled:  # before they start, so that an error in one does not block the others forever
            asyncio.get_running_loop().call_soon(self._next)
        for _ in range(num_begun):
            self._waiting.popleft().begin_held()


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which also tracks since when a request is incomplete and since when an answer is unread."""

    def __init__(self, *args: Any, pacer: RequestPacer, write_buffer: WriteBuffer, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pacer = pacer
        self._write_buffer = write_buffer
        self._held = b""  # received but not parsed yet
        self._unanswered: deque[RequestResponseCycle] = deque()  # in the order of their answers
        self._owed_since: float | None = time.monotonic()  # when the client's incomplete request began
        self._stalled_since: float | None = None  # when the client last read some of the answer
        self._num_unread = 0  # bytes that the client had not read at the last check
        self._was_resumed = False  # the client has read enough since the last check for more to be written
        self._in_head = True
        self._num_head_bytes = 0
        self._num_begun = 0  # requests started by the bytes received last
        self._is_between = True  # the last request is complete and the next has not started
        self._has_upgrade = False  # the last request offers another protocol
        self._is_resuming = False  # parsing a substitute head, see `_ignore_upgrade`
        self._keep_alive = True  # whether the last request allows the connection to stay open
        self._is_broken = False  # invalid HTTP was received, so further bytes are ignored

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        coalescing = CoalescingTransport(transport, self._write_buffer)
        super().connection_made(cast("asyncio.Transport", coalescing))

    def data_received(self, data: bytes) -> None:
        if self._is_broken:
            return
        if self._held or self._is_answering:
            self._hold(data)
        elif self._in_head and not data.startswith(PRIORITY_PREFIX) and not self._pacer.take(self):
            self.transport.pause_reading()
            self._unset_keepalive_if_required()  # the connection is no longer idle
            self._held = data
        else:
            self._feed(data)

    @property
    def _is_answering(self) -> bool:
        """Whether a complete request is not answered yet, so that further bytes belong to the next one."""
        return self._is_between and bool(self.cycle) and not self.cycle.response_complete

    def _hold(self, data: bytes) -> None:
        """Keeps what a client sends ahead. Reading continues, because otherwise a disconnect would go unnoticed."""
        self._held += data
        if len(self._held) > MAX_HELD_BYTES:
            self.flow.pause_reading()

    def begin_held(self) -> None:
        data, self._held = self._held, b""
        if self.parser is not None and not self.transport.is_closing():
            self._feed(data)
            if not self.flow.read_paused:
                self.transport.resume_reading()

    def on_response_complete(self) -> None:
        self._unanswered.popleft()
        super().on_response_complete()
        if self._held and not self._is_answering and not self.transport.is_closing():
            data, self._held = self._held, b""
            self.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Notifies every unanswered request. uvicorn notifies only the last one, which may wait behind others."""
        super().connection_lost(exc)
        self._held = b""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def _feed(self, data: bytes) -> None:
        was_in_head, self._num_begun, self._is_between = self._in_head, 0, False
        self._unset_keepalive_if_required()
        self._parse(data)
        if not self._in_head or self._is_between:
            return
        if self._owed_since is None:  # such as after a line feed between requests, which starts none
            self._owed_since = time.monotonic()
        if was_in_head and self._num_begun <= 1:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                limit = f"the limit of {MAX_HEAD_BYTES} bytes"
                self._reject(
                    431, "head_too_large", f"the request's head is over {limit}; send fewer or shorter headers"
                )

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, BadHeadError):
                self._break_off(cause.status, cause.message)
            else:
                self._break_off(400, f"the request is not valid HTTP ({one_line(error)}); send HTTP/1.1")

    def _break_off(self, status: int, message: str) -> None:
        """Stops reading, because the start of the next request is unknown. Earlier requests still get their answers."""
        self._is_broken, self._held, self._owed_since = True, b"", None
        unanswered = [*self._unanswered]
        own = unanswered.pop() if unanswered and not self._in_head else None
        if own is not None:  # its body cannot be read
            own.disconnected = True
            own.message_event.set()
            self.pipeline = deque(each for each in self.pipeline if each[0] is not own)
        if unanswered:
            unanswered[-1].keep_alive = False  # uvicorn then closes the connection after its answer
        elif self._in_head or (own is not None and not own.response_started):
            self._write_error(status, "invalid_http", message)
            self.transport.close()
        else:
            self.transport.close()

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Ignores the request's offer of another protocol, which a server may always do (RFC 9110, 7.8).

        The parser stops after a head with such an offer (h2c, from Java's client and `curl --http2`) and would parse the body
        as another request. So a new parser gets a substitute head with the same framing, and then the rest. CONNECT has no
        body, and no request follows it, so the connection is closed.
        """
        if self.scope["method"] == "CONNECT":
            self._in_head, self._num_head_bytes = True, 1  # so that `_reject` answers it
            self._reject(
                405, "method_not_allowed", "CONNECT is not supported, because this is no proxy; send GET or POST"
            )
            return
        framing = [
            name + b": " + value + b"\r\n"
            for name, value in self.scope["headers"]
            if name in {b"content-length", b"transfer-encoding"}
        ]
        self.parser = httptools.HttpRequestParser(self)
        self._is_resuming = True
        self._parse(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n")
        if not self.transport.is_closing() and rest:
            self._parse(rest)

    def on_message_begin(self) -> None:
        if self._is_resuming:
            return
        super().on_message_begin()
        self._owed_since = time.monotonic()
        self._in_head, self._num_head_bytes, self._is_between = True, 0, False
        self._num_begun += 1

    def on_headers_complete(self) -> None:
        if self._is_resuming:
            self._is_resuming = False
            return
        check_head(self.parser.get_http_version(), self.headers)
        self._in_head = False
        self._has_upgrade = self.parser.should_upgrade()
        if self.parser.get_method() == b"CONNECT":
            self.scope["method"] = "CONNECT"
        else:
            self.url = origin_form(self.url)
            super().on_headers_complete()
            self.headers = []  # trailers must not become headers (RFC 9110, 6.5.1)
            self._keep_alive = self.cycle.keep_alive
            if self.expect_100_continue:  # until the body arrives: a client whose request is rejected may not send it
                self.cycle.keep_alive = False
            self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        if self.expect_100_continue:
            self.expect_100_continue = False
            self.cycle.keep_alive = self._keep_alive
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._has_upgrade:  # the parser calls this at the end of the head; the body follows
            self._has_upgrade = False
            return
        self._owed_since = None
        self._in_head = self._is_between = True  # of the next request
        super().on_message_complete()

    def check(self, now: float, request_seconds: float) -> None:
        """Closes the connection if the client has not sent its request, or read its answer, in time."""
        if self.transport.is_closing():
            return
        if self._owed_since is not None and not self._held:
            limit = min(HEAD_SECONDS, request_seconds) if self._in_head else request_seconds
            if now - self._owed_since > limit:
                self._reject(408, "request_timeout", f"the request was not complete after {limit:g} s; send it faster")
        num_unread = self.transport.get_write_buffer_size()
        has_read = self._was_resumed or num_unread < self._num_unread
        self._num_unread, self._was_resumed = num_unread, False
        if not num_unread:
            self._stalled_since = None
        elif self._stalled_since is None or has_read:  # a slow client is not stalled
            self._stalled_since = now
        elif now - self._stalled_since > request_seconds:
            self.transport.abort()

    def resume_writing(self) -> None:
        self._was_resumed = True
        super().resume_writing()

    def _reject(self, status: int, code: str, message: str) -> None:
        """Closes the connection, after an error response if a request has started and no other response is being sent."""
        if self._in_head:
            may_answer = self._num_head_bytes > 0 and (self.cycle is None or self.cycle.response_complete)
        else:
            # With pipelined requests before it, those must be answered first.
            may_answer = not self.cycle.response_started and not self.pipeline
        if may_answer:
            self._write_error(status, code, message)
        self.transport.close()

    def _write_error(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)


def sweep(connections: Iterable[object], request_seconds: float) -> None:
    """Checks the limits of all connections. `request_seconds` is the time limit to send a request, and to read an answer."""
    now = time.monotonic()
    for connection in list(connections):
        if isinstance(connection, Connection):
            connection.check(now, request_seconds)
