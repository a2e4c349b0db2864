"""Callbacks that are due a fixed time after they were scheduled."""

import asyncio

from app.engine.timers import Timers

SECONDS = 0.02


def test_a_key_that_is_not_cancelled_is_called_once_when_it_is_due_and_in_order() -> None:
    async def wait() -> list[tuple[str, bool]]:
        loop, called = asyncio.get_running_loop(), list[tuple[str, bool]]()
        done = asyncio.Event()
        began: dict[str, float] = {}

        def callback(key: str) -> None:
            called.append((key, loop.time() - began[key] >= SECONDS - 0.002))  # a loop's clock is coarse
            if key == "last":
                done.set()

        timers = Timers(SECONDS, callback)
        for key in ("first", "cancelled", "second"):
            began[key] = loop.time()
            timers.schedule(key)
        timers.cancel("cancelled")
        await asyncio.sleep(SECONDS / 2)
        began["last"] = loop.time()
        timers.schedule("last")
        await done.wait()
        timers.cancel("first")  # nothing
        return called

    assert asyncio.run(wait()) == [("first", True), ("second", True), ("last", True)]


def test_a_key_that_is_scheduled_when_none_is_left_is_called_too() -> None:
    async def wait() -> int:
        called = asyncio.Queue[int]()
        timers = Timers(0.0, called.put_nowait)
        timers.schedule(1)
        await called.get()
        timers.schedule(2)
        return await called.get()

    assert asyncio.run(wait()) == 2
