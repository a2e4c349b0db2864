"""Work on threads that nothing waits for: whether any is left decides how the process ends."""

import asyncio
import threading

import pytest

from app.engine import process


def test_work_that_has_delivered_its_result_is_not_left_over() -> None:
    async def run() -> list[bool]:
        return [await process.in_daemon_thread(lambda: True) and process.has_daemon_work() for _ in range(200)]

    assert asyncio.run(run()) == [False] * 200


def test_work_that_never_ends_is() -> None:
    released = threading.Event()

    async def run() -> bool:
        process.in_daemon_thread(released.wait)
        return await asyncio.to_thread(process.has_daemon_work)

    try:
        assert asyncio.run(run())
    finally:
        released.set()
    assert not process.has_daemon_work()


def test_an_interrupt_ends_the_wait_for_work(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def interrupt(_: threading.Thread, timeout: float) -> None:
        raise KeyboardInterrupt(timeout)

    async def run() -> bool:
        process.in_daemon_thread(released.wait)
        monkeypatch.setattr(threading.Thread, "join", interrupt)
        return process.has_daemon_work()

    try:
        assert asyncio.run(run())
    finally:
        released.set()
