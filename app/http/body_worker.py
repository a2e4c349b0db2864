"""A worker process for Python work that would hold the GIL for too long.

Parsing a trainer's 20 MB body holds the GIL for 0.1 s and more on any thread; meanwhile no other request is read and no batch
starts. In a process of its own, it costs the service only two copies of the bytes.
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
"""How long to wait after a failed start before the next one."""
P = ParamSpec("P")
R = TypeVar("R")


class Worker:
    """One process, started with the first work. Use it on the event loop only."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._retry_at = 0.0

    async def run(self, work: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Calls `work`, a function of a module, with arguments that can be pickled; raises what it raises.

        If the process cannot be started (no /dev/shm, too many processes) or has died (killed for its memory), the work runs
        in this process instead, and later work starts a new one.
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
        """The pool and the work's future; None if there is no worker process."""
        if self._pool is None and time.monotonic() < self._retry_at:
            return None
        others = set(active_children())
        try:
            if self._pool is None:
                # Not forked: a fork would copy locks that other threads hold.
                self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent)
            return self._pool, self._pool.submit(work, *args, **options)
        except (OSError, ImportError, NotImplementedError, RuntimeError) as error:
            # Semaphores need /dev/shm (else OSError, or ImportError on systems without any). The process and the pool's
            # thread count towards the limits on both (OSError, RuntimeError). BrokenExecutor is a RuntimeError.
            logger.warning(
                "no worker process (%s); reading large bodies in the service's own process for %d s",
                one_line(error),
                RETRY_SECONDS,
            )
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self.close(wait=False)
            for child in set(active_children()) - others:  # without the pool's thread, nothing would end it
                child.kill()
            return None

    def close(self, *, wait: bool = True) -> None:
        """Ends the process after its current work."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=wait, cancel_futures=True)


async def call_here(work: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
    """Runs the work on a thread of this process, or on the event loop if no thread can be started."""
    try:
        future = asyncio.get_running_loop().run_in_executor(None, partial(work, *args, **options))
    except RuntimeError:
        return work(*args, **options)
    return await future


def end_with_parent() -> None:
    """Runs in the worker: ignores Ctrl+C, which is for the service, and ends the worker when the service has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()
