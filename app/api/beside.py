"""Arithmetic beside the event loop that lets the other threads have their turn."""

import asyncio
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
DEFAULT_SECONDS, SHORT_SECONDS = sys.getswitchinterval(), 0.0001

_num_running = 0


async def beside(work: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
    """Runs `work` in a thread, with short turns of the interpreter for as long as any such work runs.

    The model thread asks for the interpreter again after every operation, some hundred times a forward, and a thread that
    computes in Python hands it over only when its turn is up: after 5 ms by default, which would add up to a second.
    Short turns all the time would cost a quarter of the small requests that the service can answer.
    """
    global _num_running  # noqa: PLW0603 - the interval is the interpreter's, so is the count
    _num_running += 1
    sys.setswitchinterval(SHORT_SECONDS)
    try:
        return await asyncio.to_thread(work, *args, **options)
    finally:
        _num_running -= 1
        if not _num_running:
            sys.setswitchinterval(DEFAULT_SECONDS)
