"""Ends a forward for which nobody waits any more: a text of a million tokens takes hours, its deadline is minutes.

The model thread says who waits (`abandoned_when`); what takes long asks now and then (`check_wanted`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_abandoned: ContextVar[Callable[[], bool] | None] = ContextVar("is_abandoned", default=None)


class AbandonedError(Exception):
    """Every client of the forward has gone, or its deadline has passed."""


@contextmanager
def abandoned_when(is_abandoned: Callable[[], bool]) -> Iterator[None]:
    token = _is_abandoned.set(is_abandoned)
    try:
        yield
    finally:
        _is_abandoned.reset(token)


def check_wanted() -> None:
    """Raises AbandonedError where nobody waits for the forward that this thread computes."""
    is_abandoned = _is_abandoned.get()
    if is_abandoned is not None and is_abandoned():
        raise AbandonedError("nobody waits for this forward any more")
