"""What connections write in one tick of the event loop, sent when the tick ends: one system call per connection.

uvicorn writes a response's head and its body apart, and uvloop sends every write at once: two system calls and two packets.
And a client that is sent one response after the other, each as soon as it is ready, is woken for each of them.
"""

import asyncio
from typing import Any

MAX_GATHERED_BYTES = 65536
"""More is sent at once, so that whoever writes a large response piece by piece is told when its client does not keep up."""


class WriteBuffer:
    """The connections that have something to send. One for all connections of a server."""

    def __init__(self) -> None:
        self._transports: list[GatheringTransport] = []

    def add(self, transport: "GatheringTransport") -> None:
        if not self._transports:
            asyncio.get_running_loop().call_soon(self._flush)
        self._transports.append(transport)

    def _flush(self) -> None:
        transports, self._transports = self._transports, []
        for transport in transports:
            transport.flush()


class GatheringTransport:
    """A connection's transport that keeps what is written until its buffer is flushed, or it is closed.

    What is not overridden here is the transport's own.
    """

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
        if self._num_bytes > MAX_GATHERED_BYTES:
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
