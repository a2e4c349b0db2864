"""Many calls that are due a fixed time after they were set, and hardly ever come to it."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

K = TypeVar("K")


class Alarms(Generic[K]):
    """Calls `ring` with whatever was set for `seconds` and not cleared; on the event loop, where everything here runs.

    One timer serves all, since they come due in the order in which they were set. A timer of its own for each request
    costs it several microseconds.
    """

    def __init__(self, seconds: float, ring: Callable[[K], object]) -> None:
        self.seconds = seconds
        self._ring = ring
        self._due: dict[K, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def set(self, key: K) -> None:
        self._due[key] = monotonic() + self.seconds
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.seconds, self._come_due)

    def clear(self, key: K) -> None:
        """Nothing happens where it has rung."""
        self._due.pop(key, None)

    def _come_due(self) -> None:
        self._timer = None
        while self._due:
            key, due = next(iter(self._due.items()))
            if (left := due - monotonic()) > 0:
                self._timer = asyncio.get_running_loop().call_later(left, self._come_due)
                return
            del self._due[key]
            self._ring(key)
