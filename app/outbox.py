"""What the connections write in one turn of the event loop, sent when the turn ends: one system call each.

uvicorn writes an answer's head and its body apart, and the loop sends at once what is written: two system calls and two
packets for an answer of 300 bytes, and a client that is woken for its head alone.
"""

import asyncio
from typing import Any

MAX_GATHERED_BYTES = 65536
"""More is sent at once, so that who writes a large answer piece by piece hears when its client does not keep up."""


class Outbox:
    """Those of all connections that have something to send."""

    def __init__(self) -> None:
        self._full: list[GatheringTransport] = []

    def add(self, transport: "GatheringTransport") -> None:
        if not self._full:
            asyncio.get_running_loop().call_soon(self._send)
        self._full.append(transport)

    def _send(self) -> None:
        full, self._full = self._full, []
        for transport in full:
            transport.flush()


class GatheringTransport(asyncio.Transport):
    """A transport that keeps what is written until its outbox is sent, or it is closed."""

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        super().__init__()
        self._transport = transport
        self._outbox = outbox
        self._written: list[bytes | bytearray | memoryview] = []
        self._num_bytes = 0
        self._num_flushed = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._written:
            self._outbox.add(self)
        self._written.append(data)
        self._num_bytes += len(data)
        if self._num_bytes > MAX_GATHERED_BYTES:
            self.flush()

    def flush(self) -> None:
        self._num_flushed += self._num_bytes
        written, self._written, self._num_bytes = self._written, [], 0
        if written and not self._transport.is_closing():
            self._transport.writelines(written)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    @property
    def num_taken(self) -> int:
        """Bytes that the system has taken over so far; it takes more as the client reads."""
        return self._num_flushed - self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
