"""A helper process for Python work that would hold the interpreter lock for too long.

Parsing a trainer's 20 MB body holds the lock for a tenth of a second and more, in whatever thread it runs: meanwhile no
other request is read and no batch begins. In a process of its own it costs this one two copies of the bytes.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from typing import ParamSpec, TypeVar

from app.errors import one_line

logger = logging.getLogger(__name__)
RETRY_SECONDS = 60
"""How long no other start is tried after one that failed."""
P = ParamSpec("P")
R = TypeVar("R")


class Worker:
    """One process, started with the first work that comes. Use it on the event loop only."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._retry_at = 0.0

    async def run(self, work: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Calls `work`, a module's function, with arguments that can be pickled; raises what it raises.

        Where the process cannot be started (no /dev/shm, no more processes allowed) or has died (killed for its
        memory), the work is done in this process instead. Later work starts another one.
        """
        submitted = self._submit(work, *args, **options)
        if submitted is not None:
            pool, future = submitted
            try:
                return await asyncio.wrap_future(future)
            except BrokenExecutor:
                logger.warning("the worker process has died; reading this body in the service's own process")
                if self._pool is pool:
                    self._pool = None
        return await call_here(work, *args, **options)

    def _submit(
        self, work: Callable[P, R], *args: P.args, **options: P.kwargs
    ) -> "tuple[ProcessPoolExecutor, Future[R]] | None":
        """The pool and the work's future; None where there is no process to do it."""
        if self._pool is None and time.monotonic() < self._retry_at:
            return None
        others = set(active_children())
        try:
            if self._pool is None:
                # Not forked: a fork would copy locks that other threads hold.
                self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=live_with_the_parent)
            return self._pool, self._pool.submit(work, *args, **options)
        except (OSError, ImportError, NotImplementedError, RuntimeError) as error:
            # Semaphores want /dev/shm (OSError, or ImportError where the system has none), a process and the pool's
            # thread want room below the limit on both (OSError, RuntimeError); BrokenExecutor is a RuntimeError.
            logger.warning(
                "no worker process (%s); reading large bodies in the service's own process for %d s",
                one_line(error),
                RETRY_SECONDS,
            )
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self.close(wait=False)
            for child in set(active_children()) - others:  # started without the thread that would tell it to end
                child.kill()
            return None

    def close(self, *, wait: bool = True) -> None:
        """Ends the process, after the work that it is at."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=wait, cancel_futures=True)


async def call_here(work: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
    """On a thread of this process; on the event loop itself where no thread can be started."""
    try:
        future = asyncio.get_running_loop().run_in_executor(None, partial(work, *args, **options))
    except RuntimeError:
        return work(*args, **options)
    return await future


def live_with_the_parent() -> None:
    """Runs in the worker: leaves Ctrl+C to the service, and ends when the service does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()
