"""A client belongs to the process that made it: forked, spawned and pickled clients get their own answers."""

import asyncio
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from reward_client import (
    APIError,
    AsyncRewardClient,
    ConfigurationError,
    DeadlineError,
    InvalidItemError,
    InvalidRequestError,
    Limits,
    Retry,
    RewardClient,
    UnauthorizedError,
    UnavailableError,
)
from tests.reward_client import echo

pytestmark = pytest.mark.server
KINDS = [RewardClient, AsyncRewardClient]
METHODS = ["fork", "spawn", "forkserver"]
multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.reward_client.echo"])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with echo.serve() as url:
        yield url


@contextmanager
def opened(kind: type[Any], url: str) -> Iterator[Any]:
    """A client that is closed at the end; an async one's connections are closed with their loops."""
    client = kind(url, deadline_seconds=20)
    yield client
    if isinstance(client, RewardClient):
        client.close()


def start(context: Any, client: echo.Client, first: int) -> tuple[Any, Any]:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=echo.report_wrong, args=(there, client, first))
    process.start()
    there.close()
    return process, here


def collect(process: Any, pipe: Any) -> int:
    """The child's count; fails where it hangs or dies."""
    assert pipe.poll(30), "the child gave no answer"
    count: int = pipe.recv()
    process.join(10)
    pipe.close()
    assert process.exitcode == 0
    return count


@pytest.mark.parametrize("is_used_before", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_process_gets_its_own_scores(kind: type[Any], method: str, is_used_before: bool, url: str) -> None:
    context = multiprocessing.get_context(method)
    with opened(kind, url) as client:
        if is_used_before:
            assert echo.count_wrong(client, 0, 3) == 0
        children = [start(context, client, 1000 * child) for child in range(1, 4)]
        assert echo.count_wrong(client, 0, 100) == 0
        assert [collect(*child) for child in children] == [0, 0, 0]
        assert echo.count_wrong(client, 0, 3) == 0


def test_a_fork_while_threads_are_asking_neither_hangs_nor_swaps(url: str) -> None:
    """A lock that a thread held at the time of the fork would never be released in the child."""
    client = RewardClient(url, limits=Limits(max_items=2), max_concurrency=8, deadline_seconds=20)
    is_over = threading.Event()
    wrong: list[int] = []

    def ask(first: int) -> None:
        while not is_over.is_set():
            wrong.append(echo.count_wrong_in_threads(client, first, 16))

    threads = [threading.Thread(target=ask, args=[10_000 * i]) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        context = multiprocessing.get_context("fork")
        for round_ in range(5):
            children = [start(context, client, 100_000 * (round_ + 1) + 1000 * i) for i in range(3)]
            assert [collect(*child) for child in children] == [0, 0, 0]
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert wrong
    assert not any(wrong)
    client.close()


def test_a_fork_of_a_running_loop_asks_in_a_loop_of_its_own(url: str) -> None:
    client = AsyncRewardClient(url, deadline_seconds=20)

    async def run() -> list[int]:
        assert await echo.score_in_loop(client, 1) == 1
        children = [start(multiprocessing.get_context("fork"), client, 1000 * i) for i in range(1, 4)]
        assert [await echo.score_in_loop(client, i) for i in range(100)] == list(range(100))
        return [await asyncio.to_thread(collect, *child) for child in children]

    assert asyncio.run(run()) == [0, 0, 0]


def test_a_bare_os_fork_inherits_no_connection(url: str) -> None:
    with RewardClient(url, deadline_seconds=20) as client:
        assert echo.score(client, 1) == 1
        pid = os.fork()
        if pid == 0:
            os._exit(echo.count_wrong(client, 1000))
        assert echo.count_wrong(client, 0) == 0
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_of_processes_takes_a_client_as_an_argument(kind: type[Any], method: str, url: str) -> None:
    context = multiprocessing.get_context(method)
    with opened(kind, url) as client, ProcessPoolExecutor(2, mp_context=context) as pool:
        assert echo.score(client, 1) == 1
        assert list(pool.map(echo.count_wrong, [client] * 4, range(0, 4000, 1000), timeout=60)) == [0] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_settings_travel_and_sockets_do_not(kind: type[Any]) -> None:
    settings: dict[str, Any] = {
        "api_key": "secret",
        "deadline_seconds": 7.0,
        "connect_seconds": 2.0,
        "max_concurrency": 3,
        "retry": Retry(max_attempts=2),
        "limits": Limits(max_items=5),
    }
    client = kind("http://rewards/path", **settings)
    copy = pickle.loads(pickle.dumps(client))  # noqa: S301 - our own
    assert copy.settings == client.settings
    assert repr(copy) == f"{kind.__name__}('http://rewards/path')"
    assert "secret" not in repr(copy.settings)


@pytest.mark.parametrize(
    "error",
    [
        APIError(422, "no", code="invalid_input", item=3, body={"error": 1}),
        InvalidRequestError(422, "no", code="too_long", item=7, body=b"x"),
        UnauthorizedError(401, "no key"),
        UnavailableError(503, "full", code="overloaded"),
        InvalidItemError("bad mask", 4),
        DeadlineError("late"),
        ConfigurationError("no scheme"),
    ],
)
def test_errors_unpickle_with_their_fields(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(copy) is type(error)
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))


def refuse(request: httpx.Request) -> httpx.Response:
    error = {"code": "too_long", "message": "items[0] has 600 tokens; the limit is 512", "item": 0}
    return httpx.Response(422, json={"error": error}, request=request)


def ask_for_a_refusal() -> None:
    with RewardClient("http://rewards", transport=httpx.MockTransport(refuse)) as client:
        client.score([{"text": "a"}])


def test_a_process_pool_raises_the_errors_of_its_workers() -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(InvalidRequestError, match="600 tokens") as caught:
        pool.submit(ask_for_a_refusal).result(timeout=60)
    assert (caught.value.status, caught.value.code, caught.value.item) == (422, "too_long", 0)
