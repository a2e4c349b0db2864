"""Badly behaved clients that a server must expect: slow, disconnecting, oversized, silent, idle.

`python -m benchmarks.rough PORT NAME...` runs these crowds until its input ends. They run in a separate process, so that they disturb
only the server and not the client of the normal traffic.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import cast

from benchmarks.client import Endpoint

Crowd = Callable[[int, bytes], Awaitable[None]]
"""One client of a crowd: takes the port and a well-formed request, and runs until it is cancelled."""

CHUNK = bytes(1 << 20)
LARGE_BODY_BYTES = 100_000_000
SETTLE_SECONDS = 3
"""Time limit for a crowd to connect, and for its single requests to be answered."""


async def slow(port: int, request: bytes) -> None:
    """Sends one byte per second."""
    async with opened(port) as (_, writer):
        for i in range(len(request)):
            writer.write(request[i : i + 1])
            await writer.drain()
            await asyncio.sleep(1)


async def gone_before_the_body_ends(port: int, request: bytes) -> None:
    async with opened(port) as (_, writer):
        writer.write(request[:-10])
        await writer.drain()
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)


async def gone_before_the_answer(port: int, request: bytes) -> None:
    async with opened(port) as (_, writer):
        writer.write(request)
        await writer.drain()
    await asyncio.sleep(0.2)


async def too_large(port: int, request: bytes) -> None:
    """Sends 100 MB even if the server responds early, then reads the response."""
    head = request.partition(b"\r\n\r\n")[0].rpartition(b"\r\nContent-Length")[0]
    async with opened(port) as (reader, writer):
        writer.write(head + b"\r\nContent-Length: %d\r\n\r\n" % LARGE_BODY_BYTES)
        for _ in range(LARGE_BODY_BYTES // len(CHUNK)):
            writer.write(CHUNK)
            await writer.drain()
        status = await reader.readline()
        if b" 413 " not in status:
            raise AssertionError(f"100 MB were answered with {status!r}")


async def half_open(port: int, request: bytes) -> None:
    """Sends half of a request's headers and nothing more; reconnects when it is disconnected."""
    async with opened(port) as (reader, writer):
        writer.write(request[:30])
        await reader.read()


async def idle(port: int, request: bytes) -> None:
    """Sends one request and keeps the connection open."""
    async with opened(port) as (reader, writer):
        writer.write(request)
        await reader.read()


CROWDS: dict[str, tuple[Crowd, int]] = {
    "a byte a second": (slow, 500),
    "leave before the body ends": (gone_before_the_body_ends, 100),
    "leave before the answer": (gone_before_the_answer, 100),
    "100 MB bodies": (too_large, 2),
    "half of a head": (half_open, 1000),
    "idle keep-alive": (idle, 2000),
}
"""(client, number of clients at once) by name."""


@contextlib.contextmanager
def crowds(names: Sequence[str], port: int) -> Iterator[None]:
    """Runs these crowds while the context lasts; raises RuntimeError if one of their clients got an unexpected response."""
    command = [sys.executable, "-m", "benchmarks.rough", str(port), *names]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # they are connected from now on
    try:
        yield
    finally:
        process.communicate()
    if process.returncode:
        raise RuntimeError(f"the crowd of {', '.join(names)} ended with {process.returncode}")


async def be(names: Sequence[str], port: int) -> None:
    """Runs the crowds until standard input ends."""
    request = Endpoint(port, "/score").request_bytes(b'{"items": [{"text": "how long should green tea steep"}]}')
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)

    async def again_and_again(client: Crowd) -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                await client(port, request)

    clients = [client for client, count in map(CROWDS.__getitem__, names) for _ in range(count)]
    tasks = [asyncio.create_task(again_and_again(client)) for client in clients]
    await asyncio.sleep(SETTLE_SECONDS)
    print("there", flush=True)
    await ended.wait()
    for task in tasks:
        if task.done():
            await task
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def opened(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        cast("asyncio.Transport", writer.transport).abort()


if __name__ == "__main__":
    asyncio.run(be(sys.argv[2:], int(sys.argv[1])))
