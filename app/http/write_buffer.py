"""Collects what connections write in one tick of the event loop and sends it with one system call per connection.

uvicorn writes a response's head and body separately, and uvloop sends every write at once: two system calls and two packets.
Besides, a client that gets several responses in one tick would be woken for each of them.
"""

import asyncio
from typing import Any

MAX_BUFFERED_BYTES = 65536
"""More is sent at once, so that backpressure reaches the code that writes a large response in pieces."""


class WriteBuffer:
    """The transports with something to send. All connections of a server share one buffer."""

    def __init__(self) -> None:
        self._transports: list[CoalescingTransport] = []

    def add(self, transport: "CoalescingTransport") -> None:
        if not self._transports:
            asyncio.get_running_loop().call_soon(self._flush)
        self._transports.append(transport)

    def _flush(self) -> None:
        transports, self._transports = self._transports, []
        for transport in transports:
            transport.flush()


class CoalescingTransport:
    """Wraps a connection's transport and keeps what is written until the buffer is flushed or the transport is closed."""

    def __init__(self, transport: asyncio.Transport, buffer: WriteBuffer) -> None:
        self._transport = transport
        self._buffer = buffer
        self._written: list[bytes] = []
        self._num_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._written:
            self._buffer.add(self)
        self._written.append(data)
        self._num_bytes += len(data)
        if self._num_bytes > MAX_BUFFERED_BYTES:
            self.flush()

    def flush(self) -> None:
        written, self._written, self._num_bytes = self._written, [], 0
        if written and not self._transport.is_closing():
            self._transport.writelines(written)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self.flush()
        self._transport.close()
