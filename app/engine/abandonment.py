"""Stops a forward pass whose clients have all left: a text of a million tokens takes hours, its deadline is minutes.

The model thread sets the condition (`abandoned_when`); long computations check it regularly (`check_wanted`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_abandoned: ContextVar[Callable[[], bool] | None] = ContextVar("is_abandoned", default=None)


class AbandonedError(Exception):
    """Every client of the forward pass has disconnected or reached its deadline."""


@contextmanager
def abandoned_when(is_abandoned: Callable[[], bool]) -> Iterator[None]:
    """Within the context, `check_wanted` on this thread raises as soon as `is_abandoned` returns True."""
    token = _is_abandoned.set(is_abandoned)
    try:
        yield
    finally:
        _is_abandoned.reset(token)


def check_wanted() -> None:
    """Raises AbandonedError if no client waits for the forward pass that this thread computes."""
    is_abandoned = _is_abandoned.get()
    if is_abandoned is not None and is_abandoned():
        raise AbandonedError("no client waits for this forward pass any more")
