"""The client and the loops against a real socket server that answers what it is told to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.client import Connection, Endpoint, ProtocolError
from benchmarks.load import LoadError, arrival_offsets, closed_loop, open_loop

OK = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b"


class Server:
    """Answers a request with its own body (or with `answer`), in two pieces, and counts what is in flight."""

    def __init__(self, answer: bytes | None = None) -> None:
        self.answer = answer
        self.num_connections = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                answer = OK % (len(body), body) if self.answer is None else self.answer
                writer.write(answer[:20])
                await asyncio.sleep(0)
                writer.write(answer[20:])
                if not answer:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[Endpoint]:
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    async with listener:
        yield Endpoint(listener.sockets[0].getsockname()[1], "/score")


def test_a_closed_loop_gives_every_answer_in_the_order_of_the_requests() -> None:
    async def scenario() -> None:
        server = Server()
        bodies = [str(index).encode() for index in range(50)]
        async with listening(server) as endpoint:
            run = await closed_loop(endpoint, bodies, concurrency=4)
        assert list(run.bodies) == bodies
        assert server.num_connections == 4
        assert len(run.latencies) == 50
        assert all(0 < latency <= run.seconds for latency in run.latencies)

    asyncio.run(scenario())


def test_an_open_loop_gives_every_answer_in_the_order_of_the_requests() -> None:
    async def scenario() -> None:
        bodies = [str(index).encode() for index in range(20)]
        async with listening(Server()) as endpoint:
            run = await open_loop(endpoint, bodies, rate=2000, seed=1)
        assert list(run.bodies) == bodies
        assert run.seconds >= arrival_offsets(20, 2000, 1)[-1]

    asyncio.run(scenario())


def test_an_error_answer_fails_the_run_and_is_shown() -> None:
    async def scenario() -> None:
        async with listening(Server(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nfull")) as endpoint:
            with pytest.raises(LoadError, match="503: b'full'"):
                await closed_loop(endpoint, [b"{}"], concurrency=1)

    asyncio.run(scenario())


def test_a_server_that_hangs_up_fails_the_run() -> None:
    async def scenario() -> None:
        async with listening(Server(b"")) as endpoint:
            with pytest.raises(LoadError, match="closed the connection"):
                await closed_loop(endpoint, [b"{}", b"{}"], concurrency=2)

    asyncio.run(scenario())


def test_an_answer_without_a_length_is_refused() -> None:
    async def scenario() -> None:
        async with listening(Server(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")) as endpoint:
            connection = await Connection.connect(endpoint)
            with pytest.raises(ProtocolError, match="without Content-Length"):
                await connection.send(endpoint.request_bytes(b"{}"))

    asyncio.run(scenario())


def test_arrivals_come_from_the_seed_at_the_rate() -> None:
    offsets = arrival_offsets(4000, 100.0, 7)
    assert offsets == arrival_offsets(4000, 100.0, 7)
    assert offsets != arrival_offsets(4000, 100.0, 8)
    assert offsets == sorted(offsets)
    assert offsets[-1] == pytest.approx(40.0, rel=0.1)


def test_a_rate_is_positive() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        arrival_offsets(1, 0.0, 0)
