"""Fairness between texts that are tokenized at once, shown by who waits for whom and not by the clock."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from app.engine.encoder import LARGE_CHARS, FairLock, TextEncoder
from app.engine.tokenizer_threads import NUM_LONG_THREADS, TokenizerThreads
from app.errors import InferenceFailedError
from tests.models import make_tokenizer

WAIT_SECONDS = 30


@contextmanager
def running(threads: "TokenizerThreads[str]") -> Iterator["TokenizerThreads[str]"]:
    for thread in threads.threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads.threads:
            thread.stop()
        for thread in threads.threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()


def is_long(request: str) -> bool:
    return request.startswith("long")


def test_a_short_text_is_tokenized_while_long_ones_are() -> None:
    may_end = threading.Event()
    begun = threading.Semaphore(0)
    done: list[str] = []
    short_done = threading.Event()

    def tokenize(requests: list[str]) -> list[str]:
        for request in requests:
            if is_long(request):
                begun.release()
                assert may_end.wait(WAIT_SECONDS)
            else:
                done.append(request)
                short_done.set()
        return []

    with running(TokenizerThreads(tokenize, lambda *_: None, is_long)) as threads:
        threads.submit([f"long {i}" for i in range(NUM_LONG_THREADS + 1)])
        for _ in range(NUM_LONG_THREADS):
            assert begun.acquire(timeout=WAIT_SECONDS)
        assert threads.num_waiting == 1
        threads.submit(["short"])
        assert short_done.wait(WAIT_SECONDS)
        assert done == ["short"]
        may_end.set()


def test_short_requests_go_together_and_come_back_until_nothing_is_left_of_them() -> None:
    """A request changes threads with the length of its next input."""
    left = {"short a": ["short a", "long a", "short a"], "short b": ["short b"]}
    calls: list[tuple[str, list[str]]] = []
    all_done = threading.Event()

    def tokenize(requests: list[str]) -> list[str]:
        calls.append((threading.current_thread().name, requests))
        following = [left[f"short {request[-1]}"].pop(0) for request in requests if left[f"short {request[-1]}"]]
        if not following:
            all_done.set()
        return following

    with running(TokenizerThreads(tokenize, lambda *_: None, is_long)) as threads:
        threads.submit(["short a", "short b"])
        assert all_done.wait(WAIT_SECONDS)
    assert calls[0] == ("tokenizer", ["short a", "short b"])
    assert [requests for name, requests in calls if name != "tokenizer"] == [["long a"]]
    assert [requests for name, requests in calls if name == "tokenizer"][-1] == ["short a"]


class Panic(BaseException):
    """As pyo3's, of which `except Exception` knows nothing."""


@pytest.mark.parametrize("fault", [ValueError("bad"), Panic("panic")])
def test_a_fault_fails_its_own_requests_and_ends_no_thread(fault: BaseException) -> None:
    failed: list[tuple[list[str], Exception]] = []
    num_failed = threading.Semaphore(0)
    done = threading.Event()

    def tokenize(requests: list[str]) -> list[str]:
        if "bad" in requests[0]:
            raise fault
        done.set()
        return []

    def fail(requests: list[str], error: Exception) -> None:
        failed.append((requests, error))
        num_failed.release()

    with running(TokenizerThreads(tokenize, fail, is_long)) as threads:
        all_bad = ["short bad", *["long bad"] * NUM_LONG_THREADS]
        for bad in all_bad:
            threads.submit([bad])
        for _ in all_bad:  # a good text that waits beside a bad one would fail with it
            assert num_failed.acquire(timeout=WAIT_SECONDS)
        threads.submit(["long good"])
        assert done.wait(WAIT_SECONDS)
        done.clear()
        threads.submit(["short good"])
        assert done.wait(WAIT_SECONDS)
    assert sorted(requests for requests, _ in failed) == [*[["long bad"]] * NUM_LONG_THREADS, ["short bad"]]
    assert all(str(fault) in str(error) for _, error in failed)


def test_the_lock_serves_threads_in_the_order_of_asking_and_one_that_asks_again_last() -> None:
    lock = FairLock()
    order: list[str] = []

    def ask(name: str) -> None:
        with lock:
            order.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("first", "second", "third")]
    with lock:
        for i, thread in enumerate(threads):
            thread.start()
            while lock.num_waiting == i:
                threading.Event().wait(0.001)
    ask("again")
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert order == ["first", "second", "third", "again"]


def test_chunks_take_turns_and_a_large_one_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(make_tokenizer())
    large_begun, large_may_end = threading.Event(), threading.Event()
    encode: Callable[[str], list[int]] = encoder.encode

    def slow(text: str) -> list[int]:
        if len(text) > LARGE_CHARS:
            large_begun.set()
            assert large_may_end.wait(WAIT_SECONDS)
        return encode(text)

    monkeypatch.setattr(encoder, "encode", slow)
    large = threading.Thread(target=encoder.encode_in_turn, args=("a" * (LARGE_CHARS + 1),))
    large.start()
    assert large_begun.wait(WAIT_SECONDS)
    assert encoder.encode_in_turn("a turn") == encode("a turn")
    large_may_end.set()
    large.join(WAIT_SECONDS)


def test_requests_that_no_thread_will_take_any_more_fail() -> None:
    failed: list[tuple[list[str], Exception]] = []
    threads: TokenizerThreads[str] = TokenizerThreads(lambda _: [], lambda *given: failed.append(given), is_long)
    with running(threads):
        pass
    threads.submit(["short", "long"])
    assert [requests for requests, _ in failed] == [["short"], ["long"]]
    assert all(isinstance(error, InferenceFailedError) for _, error in failed)
    assert threads.num_waiting == 0
