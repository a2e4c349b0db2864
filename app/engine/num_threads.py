"""How many threads a forward pass on CPU uses.

Its threads meet after every operation, and wait for each other by spinning. A thread that shares its processor with
another process then holds up all others: with one busy neighbour on two processors, small forwards took 3 to 20 times as
long on two threads as on one. So a forward uses no more threads than there are processors free.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from app.engine.processors import affinity, quotas

SPARE = 0.4
"""Others that use less than this much of one more processor are not counted: a client, the system's own work."""


@dataclass(frozen=True, slots=True)
class ThreadLimit:
    """The most threads that a forward uses, and what decided it."""

    num_threads: int
    reason: str
    is_fixed: bool = False
    """Whether the operator has set the number: then it is used whatever other processes do."""


def thread_limit(given: int | None) -> ThreadLimit:
    """REWARD_NUM_THREADS; else the physical cores (or OMP_NUM_THREADS), within the affinity and the quota of processors.

    A quota is rounded down, to one at least: the event loop and the tokenizer need the rest.
    """
    if given is not None:
        return ThreadLimit(given, "REWARD_NUM_THREADS", is_fixed=True)
    variable = next((name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(name)), None)
    limits = [ThreadLimit(torch.get_num_threads(), variable or "the physical cores")]
    num_allowed = len(affinity())
    limits.append(ThreadLimit(num_allowed, f"the affinity of this process: {num_allowed} processors"))
    for quota in quotas():
        reason = f"the quota of {quota.num_processors:g} processors in {quota.limit_file}"
        limits.append(ThreadLimit(max(int(quota.num_processors), 1), reason))
    return min(limits, key=lambda limit: limit.num_threads)  # the first of equal ones


def candidates_below(limit: int) -> list[int]:
    """Numbers of threads to choose from besides the limit, falling.

    None is below half of the limit: where every processor has a neighbour, half of each is a fair share. And two services
    on one machine, each the other's neighbour, settle at half the processors each.
    """
    half = math.ceil(limit / 2)
    return sorted(
        {n for n in (limit - 1, limit - 2, math.ceil(limit * 3 / 4), half) if half <= n < limit}, reverse=True
    )


class ThreadChooser:
    """Chooses the number of threads by what other processes leave free. One for all models: they share the processors."""

    def __init__(self, limit: ThreadLimit, free_processors: Callable[[], float]) -> None:
        self.limit = limit
        self.free_processors = free_processors

    def choose(self, counts: Sequence[int]) -> int:
        """The largest of `counts`, which fall, for which processors are free; the first one where none fits.

        No number below half of the first fits, see `candidates_below`.
        """
        wanted = max(self.free_processors() + SPARE, math.ceil(counts[0] / 2))
        return next((count for count in counts if count <= wanted), counts[0])


class ForwardThreads:
    """Sets torch's number of threads for the forwards of one model.

    By default that is one for a small forward, and for others the number of the thread that computes. `follow` lets
    it follow the load, `fixed_at` sets it for a test.
    """

    def __init__(self) -> None:
        self.counts: tuple[int, ...] = ()
        """The numbers that may be chosen, falling; the first is the limit. Fewer than two: nothing to choose."""
        self._chooser: ThreadChooser | None = None
        self._is_large = False  # the forward that runs
        self._fixed: int | None = None

    def follow(self, chooser: ThreadChooser, counts: tuple[int, ...], layers: Sequence[nn.Module]) -> None:
        """Chooses among `counts` from now on, before each large forward and before each of its layers.

        The scores must have the same bits on each of them; a number that turns out to give others must leave `counts`.
        """
        self._chooser, self.counts = chooser, counts
        for layer in layers:
            layer.register_forward_pre_hook(self._choose)

    @contextmanager
    def fixed_at(self, num_threads: int) -> Iterator[None]:
        """Runs every forward of the context on so many threads, small ones too."""
        self._fixed = num_threads
        try:
            yield
        finally:
            self._fixed = None

    @contextmanager
    def set_for_forward(self, *, is_small: bool) -> Iterator[None]:
        """Runs the context on the chosen number of threads."""
        before = torch.get_num_threads()
        self._is_large = not is_small and self._fixed is None
        try:
            if is_small or self._fixed is not None:
                set_num_threads(self._fixed or 1)
            self._choose()
            yield
        finally:
            self._is_large = False
            set_num_threads(before)

    def _choose(self, *_: Any) -> None:
        if self._is_large and self._chooser is not None and len(self.counts) > 1:
            set_num_threads(self._chooser.choose(self.counts))


def set_num_threads(wanted: int) -> None:
    if torch.get_num_threads() != wanted:  # to set it costs more than to ask
        torch.set_num_threads(wanted)
