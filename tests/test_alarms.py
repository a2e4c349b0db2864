"""Calls that are due a fixed time after they were set."""

import asyncio

from app.alarms import Alarms

SECONDS = 0.02


def test_what_is_not_cleared_rings_once_when_it_is_due_and_in_order() -> None:
    async def wait() -> list[tuple[str, bool]]:
        loop, rung = asyncio.get_running_loop(), list[tuple[str, bool]]()
        done = asyncio.Event()
        began: dict[str, float] = {}

        def ring(key: str) -> None:
            rung.append((key, loop.time() - began[key] >= SECONDS - 0.002))  # a loop's clock is coarse
            if key == "last":
                done.set()

        alarms = Alarms(SECONDS, ring)
        for key in ("first", "cleared", "second"):
            began[key] = loop.time()
            alarms.set(key)
        alarms.clear("cleared")
        await asyncio.sleep(SECONDS / 2)
        began["last"] = loop.time()
        alarms.set("last")
        await done.wait()
        alarms.clear("first")  # nothing
        return rung

    assert asyncio.run(wait()) == [("first", True), ("second", True), ("last", True)]


def test_an_alarm_that_is_set_when_none_is_left_rings_too() -> None:
    async def wait() -> int:
        rung = asyncio.Queue[int]()
        alarms = Alarms(0.0, rung.put_nowait)
        alarms.set(1)
        await rung.get()
        alarms.set(2)
        return await rung.get()

    assert asyncio.run(wait()) == 2
