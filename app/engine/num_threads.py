"""How many threads a forward pass on the CPU uses.

The threads synchronize after every operation and spin while they wait. So a thread that shares its processor with another
process delays all of them: with one busy process on two processors, small forward passes took 3 to 20 times as long on two
threads as on one. A forward pass therefore uses at most as many threads as there are free processors.
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
"""Other processes may use this fraction of a processor without costing a thread: a client, the system's own work."""


@dataclass(frozen=True, slots=True)
class ThreadLimit:
    """The maximum number of threads of a forward pass, and what determined it."""

    num_threads: int
    reason: str
    is_fixed: bool = False
    """Whether the operator has set the number; then it does not follow the load."""


def thread_limit(given: int | None) -> ThreadLimit:
    """REWARD_NUM_THREADS; else the physical cores (or OMP_NUM_THREADS), limited by CPU affinity and CPU quotas.

    A quota is rounded down, but not below 1: the event loop and the tokenizer use the rest.
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
    """Numbers of threads to choose from besides the limit, descending.

    None is below half of the limit: if other processes use every processor, half is a fair share, and two services on one
    machine settle at half of the processors each.
    """
    half = math.ceil(limit / 2)
    return sorted(
        {n for n in (limit - 1, limit - 2, math.ceil(limit * 3 / 4), half) if half <= n < limit}, reverse=True
    )


class ThreadChooser:
    """Chooses the number of threads by how many processors are free. All models share one chooser."""

    def __init__(self, limit: ThreadLimit, free_processors: Callable[[], float]) -> None:
        self.limit = limit
        self.free_processors = free_processors

    def choose(self, counts: Sequence[int]) -> int:
        """The largest of `counts` (descending) for which there are free processors; at least half of the first.

        The first if none meets both conditions.
        """
        wanted = max(self.free_processors() + SPARE, math.ceil(counts[0] / 2))
        return next((count for count in counts if count <= wanted), counts[0])


class ForwardThreads:
    """Sets torch's number of threads for the forward passes of one model.

    By default a small forward pass runs on one thread, others on the number that is set for the calling thread. `follow`
    makes the number follow the load, `fixed_at` fixes it for a test.
    """

    def __init__(self) -> None:
        self.counts: tuple[int, ...] = ()
        """The numbers to choose from, descending; the first is the limit. With fewer than two, the number stays fixed."""
        self._chooser: ThreadChooser | None = None
        self._is_large = False  # the forward pass that is running
        self._fixed: int | None = None

    def follow(self, chooser: ThreadChooser, counts: tuple[int, ...], layers: Sequence[nn.Module]) -> None:
        """From now on, chooses one of `counts` before each large forward pass and before each of its layers.

        The scores must be bitwise equal for all of them; remove a number from `counts` for which they are not.
        """
        self._chooser, self.counts = chooser, counts
        for layer in layers:
            layer.register_forward_pre_hook(self._choose)

    @contextmanager
    def fixed_at(self, num_threads: int) -> Iterator[None]:
        """Within the context, every forward pass runs on `num_threads` threads, small ones too."""
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
    if torch.get_num_threads() != wanted:  # reading it is cheaper than setting it
        torch.set_num_threads(wanted)
