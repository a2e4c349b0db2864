"""Clients as a server must expect them: slow, gone, silent, too large, too many. Everybody else is served meanwhile."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
from fastapi import FastAPI
from uvicorn.server import ServerState

from app.http.connection import (
    HEAD_SECONDS,
    MAX_HEAD_BYTES,
    MAX_STARTS_PER_TICK,
    MAX_STARTS_PER_TICK_UNDER_LOAD,
    Connection,
    RequestPacer,
    sweep,
)
from app.http.server import config_of
from app.http.write_buffer import MAX_BUFFERED_BYTES, CoalescingTransport, WriteBuffer
from tests.api.asking import TEA, ask
from tests.conftest import Serve
from tests.http.wire import Idle

if TYPE_CHECKING:
    from app.service import Service

BODY = json.dumps({"items": [TEA]}).encode()


def head(body_bytes: int = len(BODY)) -> bytes:
    return f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {body_bytes}\r\n\r\n".encode()


class Clock:
    """The time by which the server judges its connections: it stands still until a test moves it on."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.swept = threading.Event()

    def monotonic(self) -> float:
        return self.now

    def sweep(self, *args: Any) -> None:
        sweep(*args)
        self.swept.set()

    def advance(self, seconds: float) -> None:
        """Returns when the server has looked at its connections since."""
        self.now += seconds
        for _ in range(2):  # the first look may have begun before
            self.swept.clear()
            assert self.swept.wait(60)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("app.http.connection.time", clock)
    monkeypatch.setattr("app.http.server.sweep", clock.sweep)
    monkeypatch.setattr("app.http.server.TICKS_PER_SWEEP", 1)
    return clock


def deadline_of(client: httpx.Client) -> float:
    return float(client.get("/info").json()["limits"]["deadline_seconds"])


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes."""
    received = b""
    try:
        while more := connection.recv(65536):
            received += more
    except ConnectionResetError:
        pass
    return received


def answer_of(connection: socket.socket) -> tuple[int, Any]:
    """The one whole answer, and its JSON."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    start, _, body = received.partition(b"\r\n\r\n")
    length = int(start.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return int(start.split()[1]), json.loads(body)


@pytest.mark.parametrize("sent", [head() + BODY[:1], head()[:30]], ids=["in its body", "in its head"])
def test_a_request_that_is_not_whole_in_time_is_told_so_and_its_connection_closed(
    client: httpx.Client, clock: Clock, sent: bytes
) -> None:
    with connected(client) as connection:
        connection.sendall(sent)
        ask(client, "/score", {"items": [TEA]})
        clock.advance(deadline_of(client) + 1)
        received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


def test_bytes_that_trickle_in_do_not_put_the_end_off(client: httpx.Client, clock: Clock) -> None:
    step = deadline_of(client) / 3.5
    with connected(client) as connection:
        connection.sendall(head())
        for i in range(4):
            connection.sendall(BODY[i : i + 1])
            ask(client, "/score", {"items": [TEA]})  # meanwhile the byte has come
            clock.advance(step)
        received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "a line feed"])
def test_a_connection_on_which_nothing_is_asked_is_closed(client: httpx.Client, clock: Clock, sent: bytes) -> None:
    with connected(client) as connection:
        connection.sendall(sent)
        ask(client, "/score", {"items": [TEA]})
        clock.advance(HEAD_SECONDS + 1)
        assert not read_all(connection).startswith(b"HTTP/1.1 200")


def test_a_line_feed_after_a_request_does_not_keep_its_connection_for_ever(client: httpx.Client, clock: Clock) -> None:
    with connected(client) as connection:
        connection.sendall(head() + BODY)
        assert answer_of(connection)[0] == 200
        connection.sendall(b"\r\n")
        ask(client, "/score", {"items": [TEA]})
        clock.advance(HEAD_SECONDS + 1)
        read_all(connection)


def test_a_head_without_end_is_refused(client: httpx.Client) -> None:
    with connected(client) as connection:
        with suppress(OSError):  # it is refused while it is sent
            connection.sendall(head()[:-2] + b"X-Filler: " + b"a" * (4 * MAX_HEAD_BYTES))
        received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 431 ") or not received


def test_a_head_of_many_fields_within_the_limit_is_taken(client: httpx.Client) -> None:
    fields = {f"x-field-{i}": "a" * 500 for i in range(MAX_HEAD_BYTES // 1024)}
    assert client.post("/score", json={"items": [TEA]}, headers=fields).status_code == 200


@pytest.mark.parametrize("sent", [head() + BODY[:-1], head()], ids=["in its body", "before its body"])
def test_a_client_that_leaves_before_its_request_is_whole_leaves_nothing_behind(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING):
        with connected(client) as connection:
            connection.sendall(sent)
            ask(client, "/score", {"items": [TEA]})
        for _ in range(3):
            ask(client, "/score", {"items": [TEA]})
    assert service.num_in_flight == 0
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_body_over_the_limit_is_refused_while_it_is_still_sent_and_read_to_its_end(serve: Serve) -> None:
    with serve(max_body_mb=1) as client, connected(client) as connection:
        connection.sendall(head(20_000_000))
        status, answer = answer_of(connection)  # before a byte of it was sent
        assert (status, answer["error"]["code"]) == (413, "body_too_large")
        for _ in range(20):
            connection.sendall(bytes(1_000_000))
        connection.sendall(head() + BODY)
        assert answer_of(connection)[0] == 200


def test_requests_sent_in_one_go_are_answered_in_order(client: httpx.Client) -> None:
    texts = ["one", "two words", "now three words"]
    bodies = [json.dumps({"items": [{"text": text}]}).encode() for text in texts]
    expected = [ask(client, "/score", json.loads(body))["results"] for body in bodies]
    with connected(client) as connection:
        connection.sendall(b"".join(head(len(body)) + body for body in bodies[:-1]))
        received = b""
        while received.count(b'{"results"') < 2 or not received.endswith(b"}}"):
            received += connection.recv(65536)
        connection.sendall(head(len(bodies[-1])) + bodies[-1])
        last = answer_of(connection)[1]["results"]
    assert received.index(json.dumps(expected[0]).replace(" ", "").encode()) < received.index(
        json.dumps(expected[1]).replace(" ", "").encode()
    )
    assert last == expected[2]


class Begun:
    """A connection that notes when it is its turn."""

    def __init__(self, number: int, begun: list[int]) -> None:
        self.number = number
        self.begun = begun

    def begin_held(self) -> None:
        self.begun.append(self.number)


def test_requests_that_arrive_together_begin_a_few_at_a_time_the_oldest_first() -> None:
    count = 2 * MAX_STARTS_PER_TICK + 3 * MAX_STARTS_PER_TICK_UNDER_LOAD

    async def arrive() -> list[int]:
        pacer, begun = RequestPacer(), list[int]()
        for number in range(count):
            if pacer.take(cast("Connection", Begun(number, begun))):
                begun.append(number)
        counts = [len(begun)]
        while len(begun) < count:
            await asyncio.sleep(0)
            counts.append(len(begun))
        assert begun == list(range(count))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pacer.take(cast("Connection", Begun(-1, begun)))  # whoever comes alone begins at once
        return sorted(set(counts))

    assert asyncio.run(arrive()) == [
        *(MAX_STARTS_PER_TICK + i * MAX_STARTS_PER_TICK_UNDER_LOAD for i in range(4)),
        count,
    ]


def test_a_request_that_waits_for_its_turn_is_not_closed_as_an_idle_connection() -> None:
    async def hold() -> bool:
        pacer = RequestPacer()
        for number in range(MAX_STARTS_PER_TICK):
            pacer.take(cast("Connection", Begun(number, [])))
        connection = Connection(config_of(FastAPI()), ServerState(), {}, pacer=pacer, write_buffer=WriteBuffer())
        transport = Idle()
        connection.connection_made(transport)
        timer = connection.timeout_keep_alive_task = asyncio.get_running_loop().call_later(60, lambda: None)
        connection.data_received(head())
        transport.closed = True
        return timer.cancelled()

    assert asyncio.run(hold())


class Unread(Idle):
    """A transport with an answer of which the client has read a part."""

    def __init__(self) -> None:
        super().__init__()
        self.num_unread = 1000
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.num_unread

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize("more_is_written", [False, True])
@pytest.mark.parametrize("num_bytes_a_second", [0, 1, 100])
def test_an_answer_is_cut_off_when_nothing_of_it_is_read_for_long_and_not_when_it_is_read_slowly(
    num_bytes_a_second: int, more_is_written: bool
) -> None:
    """Where more is written, as much as was read follows, so that the buffer is always as full."""

    async def read() -> list[bool]:
        connection = Connection(
            config_of(FastAPI()), ServerState(), {}, pacer=RequestPacer(), write_buffer=WriteBuffer()
        )
        transport, began, aborted = Unread(), time.monotonic(), list[bool]()
        connection.connection_made(transport)
        connection._owed_since = None  # it owes no request
        for second in range(8):
            connection.check(began + second, 3.0)
            aborted.append(transport.aborted)
            if more_is_written and num_bytes_a_second:
                connection.pause_writing()
                connection.resume_writing()
            else:
                transport.num_unread -= num_bytes_a_second
        return aborted

    assert asyncio.run(read()) == [num_bytes_a_second == 0 and second > 3 for second in range(8)]


def test_an_answer_that_takes_its_time_is_not_cut_off(
    client: httpx.Client, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = cast("Service", client.app.state.service)  # type: ignore[attr-defined]
    asked, released = threading.Event(), threading.Event()
    score = service.score

    async def score_late(*inputs: Any, **options: Any) -> Any:
        asked.set()
        await asyncio.to_thread(released.wait)
        return await score(*inputs, **options)

    monkeypatch.setattr(service, "score", score_late)
    with connected(client) as connection:
        connection.sendall(head() + BODY)
        assert asked.wait(30)
        clock.advance(10 * deadline_of(client))
        released.set()
        assert answer_of(connection)[0] == 200


class Recorded(Idle):
    """A transport that notes each of its system calls."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def write(self, data: Any) -> None:
        self.sent.append(data)

    def writelines(self, list_of_data: Any) -> None:
        self.sent.append(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def test_what_a_connection_writes_in_one_tick_is_sent_with_one_call_when_the_tick_ends_or_before_the_connection_does() -> (
    None
):
    async def send() -> list[list[bytes]]:
        buffer, first, second = WriteBuffer(), Recorded(), Recorded()
        one, other = CoalescingTransport(first, buffer), CoalescingTransport(second, buffer)
        one.write(b"head ")
        other.write(b"alone")
        one.write(b"body")
        sent = [[*first.sent], [*second.sent]]
        await asyncio.sleep(0)
        sent += [[*first.sent], [*second.sent]]
        one.write(b"last")
        one.close()
        sent.append([*first.sent])
        await asyncio.sleep(0)
        return [*sent, first.sent]

    last = [b"head body", b"last"]
    assert asyncio.run(send()) == [[], [], [b"head body"], [b"alone"], last, last]


def test_a_large_response_is_sent_before_the_tick_ends_so_that_its_writer_can_be_told_to_wait() -> None:
    async def send() -> list[int]:
        recorded = Recorded()
        transport = CoalescingTransport(recorded, WriteBuffer())
        for _ in range(3):
            transport.write(bytes(MAX_BUFFERED_BYTES // 2 + 1))
        return [len(piece) for piece in recorded.sent]

    assert asyncio.run(send()) == [MAX_BUFFERED_BYTES + 2]
