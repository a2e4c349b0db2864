"""Stops computing an answer when its client disconnects."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Receive

from app.engine.timers import Timers

T = TypeVar("T")
WATCH_AFTER_SECONDS = 0.1
"""Faster answers are not watched, because a watcher costs a task."""


class ClientGoneError(Exception):
    """The client disconnected before its answer was ready."""


class DisconnectWatch:
    """Cancels the current task when its client disconnects. `receive` is ASGI's; the body must have been read."""

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.is_gone = False
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._wait())

    def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        self.task.cancel()


class DisconnectWatches:
    """The watches of one app, which share a timer."""

    def __init__(self) -> None:
        self._timers: Timers[DisconnectWatch] = Timers(WATCH_AFTER_SECONDS, DisconnectWatch.start)

    async def while_connected(self, receive: Receive, answer: Awaitable[T]) -> T:
        """Awaits the answer. Cancels it and raises ClientGoneError when the client disconnects."""
        watch = DisconnectWatch(receive)
        self._timers.schedule(watch)
        try:
            return await answer
        except asyncio.CancelledError:
            if not watch.is_gone:
                raise
            watch.task.uncancel()
            raise ClientGoneError from None
        finally:
            self._timers.cancel(watch)
            watch.stop()
