"""Many callbacks with one fixed delay, nearly all of which are cancelled before they are due."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

K = TypeVar("K")


class Timers(Generic[K]):
    """Calls `callback(key)` for each key `seconds` after it was scheduled, unless it was cancelled. For the event loop only.

    All keys share one asyncio timer, because they are due in the order in which they were scheduled. A timer per request
    would cost several microseconds.
    """

    def __init__(self, seconds: float, callback: Callable[[K], object]) -> None:
        self.seconds = seconds
        self._callback = callback
        self._due: dict[K, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def schedule(self, key: K) -> None:
        self._due[key] = monotonic() + self.seconds
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.seconds, self._run_due)

    def cancel(self, key: K) -> None:
        """Has no effect on a key that is not scheduled, or whose callback was already called."""
        self._due.pop(key, None)

    def _run_due(self) -> None:
        self._timer = None
        while self._due:
            key, due = next(iter(self._due.items()))
            if (left := due - monotonic()) > 0:
                self._timer = asyncio.get_running_loop().call_later(left, self._run_due)
                return
            del self._due[key]
            self._callback(key)
