"""Settings of the process: library switches before the first forward pass, memory, open files, and exit with work left."""

import asyncio
import contextlib
import contextvars
import ctypes
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

R = TypeVar("R")
DAEMON_THREAD = "work-off-the-loop"
ENDING_SECONDS = 0.5
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h
NEVER = 2**31 - 1
MAX_FILES = 65536


def prepare_process() -> None:
    """Call it before any forward pass and before other threads start; further calls have no effect."""
    # "Strict" conditional numerical reproducibility: MKL sums each row of a product in an order that does not depend on the
    # other rows (AVX2 and AVX-512). MKL reads the variable at its first call. We measured no cost.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    # The tokenizer's own threads would compete with the forward pass for the cores, and one thread is faster than any model.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Makes glibc keep the memory that a forward pass frees for the next one, instead of returning it to the system.

    This holds one forward pass's working memory, and saves 400,000 page faults, a tenth of the time, in the benchmark
    `distinct`. It sets one arena, because only the first can grow beyond 64 MB. Has no effect without glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, NEVER)):
            mallopt(option, value)


def give_back_freed_memory() -> None:
    """Returns the memory that `keep_freed_memory` has kept to the system, after something large has ended. Has no effect
    without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def raise_file_limit() -> int:
    """Raises the soft limit of open files (each connection is one) as far as allowed, and returns it."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def in_daemon_thread(work: Callable[[], R]) -> "asyncio.Future[R]":
    """Calls `work` on a thread of its own; the future gets what it returns or raises.

    For work that may never return, such as a download from a hub that does not answer: unlike with `asyncio.to_thread`,
    neither the event loop nor the interpreter waits for the thread at exit.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()
    context = contextvars.copy_context()

    def finish(result: R | None, error: BaseException | None) -> None:
        if future.done():  # abandoned or cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type] # None only where R allows it

    def run() -> None:
        result: R | None = None
        failure: BaseException | None = None
        try:
            result = context.run(work)
        except BaseException as error:  # noqa: BLE001 - raised where the future is awaited
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, result, failure)

    threading.Thread(target=run, name=DAEMON_THREAD, daemon=True).start()
    return future


def has_daemon_work() -> bool:
    """Whether work that `in_daemon_thread` started is still running.

    If so, end the process with `exit_now`: Python's own exit stops daemon threads anywhere, and stopping one inside C++ code
    aborts the process.
    """
    threads = [thread for thread in threading.enumerate() if thread.name == DAEMON_THREAD]
    with contextlib.suppress(KeyboardInterrupt):  # a second one, which ends the wait
        for thread in threads:  # one that has delivered its result ends within this time
            thread.join(ENDING_SECONDS)
    return any(thread.is_alive() for thread in threads)


def exit_now(code: int) -> None:
    """Ends the process without waiting for any thread."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
