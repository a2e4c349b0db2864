"""Connections: when they are opened and closed, how many there are, what a deadline counts, what is logged."""

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from typing_extensions import override

from reward_client import (
    AsyncRewardClient,
    BadReplyError,
    ClientClosedError,
    ConnectionFailedError,
    DeadlineError,
    Limits,
    Retry,
    RewardClient,
)
from tests.reward_client import echo
from tests.reward_client.conftest import QUICK, Ask


def num_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_sixty_loops_leave_no_descriptor_and_no_warning() -> None:
    with echo.serve() as url, warnings.catch_warnings():
        warnings.simplefilter("error")
        before = num_descriptors()
        client = AsyncRewardClient(url, deadline_seconds=30)
        for number in range(60):
            assert echo.score(client, number) == number
        gc.collect()
        until = time.monotonic() + 30
        while num_descriptors() > before:  # the server's threads close their ends after ours
            assert time.monotonic() < until
            time.sleep(0.01)
        assert len(client._by_loop) <= 1


def test_a_client_that_is_dropped_in_its_loop_closes_its_connections() -> None:
    async def run(url: str) -> None:
        for number in range(20):
            assert await echo.score_in_loop(AsyncRewardClient(url, deadline_seconds=10), number) == number

    with echo.serve() as url:
        asyncio.run(run(url))
        gc.collect()


def test_a_closed_async_client_says_so() -> None:
    async def run() -> None:
        with echo.serve() as url:
            client = AsyncRewardClient(url)
            await echo.score_in_loop(client, 1)
            await client.aclose()
            await client.aclose()
            with pytest.raises(ClientClosedError, match="AsyncRewardClient is closed"):
                await echo.score_in_loop(client, 2)

    asyncio.run(run())


class Slow(echo.Echo):
    wait_seconds = 1.5


def test_waiting_for_an_own_connection_does_not_count_against_the_deadline() -> None:
    """6 requests of 1.5 s over 2 connections take 4.5 s; each has 4 s from its sending."""
    items = [{"text": str(number)} for number in range(6)]
    settings: dict[str, Any] = {"limits": Limits(max_items=1), "max_concurrency": 2, "deadline_seconds": 4.0}

    def ask(url: str) -> list[float]:
        with RewardClient(url, **settings) as client:
            return client.score(items).of("safety")

    async def ask_both(url: str) -> list[list[float]]:
        async with AsyncRewardClient(url, **settings) as client:
            blocking = asyncio.create_task(asyncio.to_thread(ask, url))
            return [(await client.score(items)).of("safety"), await blocking]

    with echo.serve(Slow) as url:
        assert asyncio.run(ask_both(url)) == [list(range(6))] * 2


class Silent(echo.Echo):
    wait_seconds = 1.0


def test_a_server_that_is_slower_than_the_deadline_is_given_up_by_each_request(ask: Ask) -> None:
    with echo.serve(Silent) as url, pytest.raises(DeadlineError, match=r"within 0\.2 s"):
        ask("score", [{"text": "1"}], deadline_seconds=0.2, settings={"base_url": url})


def test_closing_ends_a_call_that_is_under_way() -> None:
    asked, released = threading.Semaphore(0), threading.Event()

    class Held(echo.Echo):
        @override
        def do_POST(self) -> None:
            asked.release()
            released.wait(60)
            super().do_POST()

    errors: list[BaseException] = []
    with echo.serve(Held) as url:
        client = RewardClient(url, limits=Limits(max_items=1), max_concurrency=2)

        def ask() -> None:
            try:
                client.score([{"text": "1"}] * 5)
            except BaseException as error:  # noqa: BLE001 - whatever it is
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert asked.acquire(timeout=60)
        client.close()
        released.set()
        thread.join(60)
    assert [type(error) for error in errors] == [ClientClosedError]


class ConnectsSlowly(httpx.HTTPTransport):
    """Each connect waits, once it has begun, until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.go_on = threading.Event(), threading.Event()
        self.sockets: list[Any] = []

    @override
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["trace"] = self.trace
        return super().handle_request(request)

    def trace(self, event: str, facts: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self.began.set()
            assert self.go_on.wait(60)
        elif event == "connection.connect_tcp.complete":
            self.sockets.append(facts["return_value"].get_extra_info("socket"))


def test_closing_during_a_connect_leaves_no_connection_open() -> None:
    transport = ConnectsSlowly()
    with echo.serve() as url, ThreadPoolExecutor() as threads:
        client = RewardClient(url, transport=transport)
        answer = threads.submit(echo.score, client, 1)
        assert transport.began.wait(60)
        client.close()
        transport.go_on.set()
        assert isinstance(answer.exception(60), ClientClosedError)
    assert [each.fileno() for each in transport.sockets] == [-1]


class ConnectsSlowlyInLoop(httpx.AsyncHTTPTransport):
    """Each connect waits, once it has begun, until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.go_on = asyncio.Event(), asyncio.Event()
        self.sockets: list[Any] = []

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["trace"] = self.trace
        return await super().handle_async_request(request)

    async def trace(self, event: str, facts: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self.began.set()
            await asyncio.wait_for(self.go_on.wait(), 60)
        elif event == "connection.connect_tcp.complete":
            self.sockets.append(facts["return_value"].get_extra_info("socket"))


def test_closing_an_async_client_during_a_connect_leaves_no_connection_open() -> None:
    transport = ConnectsSlowlyInLoop()

    async def run(url: str) -> None:
        client = AsyncRewardClient(url, transport=transport)
        answer = asyncio.create_task(echo.score_in_loop(client, 1))
        await asyncio.wait_for(transport.began.wait(), 60)
        await client.aclose()
        transport.go_on.set()
        with pytest.raises(ClientClosedError):
            await answer

    with echo.serve() as url:
        asyncio.run(run(url))
    assert [each.fileno() for each in transport.sockets] == [-1]


class ClosedMeanwhile(RewardClient):
    """Another thread closes it whenever a call has found it open."""

    @override
    def check_open(self) -> None:
        super().check_open()
        self.close()


def test_a_call_that_begins_while_its_client_is_closed_opens_no_connection() -> None:
    client = ClosedMeanwhile("http://rewards", limits=Limits(max_items=1))
    with pytest.raises(ClientClosedError, match="was closed during the call"):
        client.score([{"text": "1"}] * 2)
    assert not client._by_process


def test_a_failed_request_ends_its_call_without_waiting_for_the_others() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(422 if b"bad" in request.content else 503, json={"detail": "no"})

    settings: dict[str, Any] = {
        "limits": Limits(max_items=1),
        "max_concurrency": 3,
        "retry": Retry(first_seconds=100, max_seconds=100),
    }
    with RewardClient("http://rewards", transport=httpx.MockTransport(answer), **settings) as client:
        start = time.monotonic()
        with pytest.raises(Exception, match="no"):
            client.score([{"text": "good"}, {"text": "good"}, {"text": "bad"}])
        assert time.monotonic() - start < 40  # the first pause of the others is at least 50 s


def test_the_address_that_does_not_answer_is_logged_at_once(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectionFailedError, match=r"http://127\.0\.0\.1:9 did not answer /score: ConnectError"):
        ask("score", [{"text": "1"}], settings={"base_url": "http://trainer:secret@127.0.0.1:9"})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.name == "reward_client"
    assert record.getMessage().startswith("http://127.0.0.1:9 did not answer /score: ConnectError")
    assert "trying again for up to 180 s" in record.getMessage()
    assert "secret" not in caplog.text


class Raw(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body as it is on the wire, for either client."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self.content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.content


@pytest.mark.parametrize(
    ("status", "headers", "content", "message"),
    [
        (200, {"content-encoding": "gzip"}, b"not gzip", "cannot be decoded"),
        (200, {}, b"[]", r"answered with \[\]"),
        (200, {}, b"null", "answered with None"),
        (200, {}, b"1.5", r"answered with 1\.5"),
        (200, {}, b"[" * 100_000, "not JSON"),
        (200, {}, b"\xff\xfe\x00", "not JSON"),
        (200, {}, b"", "not JSON"),
        (204, {}, b"", "status 204"),
        (302, {"location": "https://rewards/score"}, b"", "use that address as base_url"),
        (200, {}, b'{"results": [{"scores": {"safety": {"score": 1' + b"0" * 400 + b"}}}]}", "score is 1000"),
    ],
)
def test_a_reply_that_is_not_the_services_is_a_bad_reply(
    ask: Ask, status: int, headers: dict[str, str], content: bytes, message: str
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, headers=headers, stream=Raw(content)))
    with pytest.raises(BadReplyError, match=message):
        ask("score", [{"text": "1"}], settings={"base_url": "http://rewards", "transport": transport})


def test_a_route_of_another_form_is_passed_through(ask: Ask) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=1.5))
    assert ask("post", "/slime", {}, settings={"base_url": "http://rewards", "transport": transport}) == 1.5


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_busy_server_is_asked_again(ask: Ask, status: int) -> None:
    numbers = iter([status, status, 200])

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(next(numbers), json=echo.replies([1.0]), headers={"retry-after": "0"})

    settings = {"base_url": "http://rewards", "transport": httpx.MockTransport(answer), "retry": QUICK}
    assert ask("score", [{"text": "1"}], settings=settings).of("safety") == [1.0]
