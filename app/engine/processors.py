"""How many processors this process may use, and how many of them other processes leave free.

Reads the system's counters. Knows neither torch nor models.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.engine.cgroups import CGROUPS, PROC, ControlGroup, control_groups

WINDOW_SECONDS = 0.25
"""Over which the use of processors is averaged. The kernel counts in hundredths of a second."""
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True, slots=True)
class Quota:
    """The processors' time that a control group may use, such as a container with `--cpus 1.5`."""

    num_processors: float
    limit_file: Path
    group: ControlGroup

    def used_seconds(self) -> float | None:
        """Of processors' time, by all processes of the group since it exists; None where the group does not tell."""
        with suppress(OSError, ValueError, KeyError):
            if self.group.version == 1:
                return int((self.group.path / "cpuacct.usage").read_text()) / 1e9
            lines = (self.group.path / "cpu.stat").read_text().splitlines()
            return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6
        return None


def affinity() -> frozenset[int]:
    """The numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def quotas(proc: Path = PROC, root: Path = CGROUPS) -> Iterator[Quota]:
    """The quotas that this process is under, in control groups of version 1 and 2; nested groups may have one each."""
    for group in control_groups("cpu", proc, root):
        with suppress(OSError, ValueError):  # no such file, or "max": no quota
            if group.version == 1:
                file = group.path / "cpu.cfs_quota_us"
                quota, period = int(file.read_text()), int((group.path / "cpu.cfs_period_us").read_text())
            else:
                file = group.path / "cpu.max"
                quota, period = map(int, file.read_text().split())
            if quota > 0 and period > 0:  # -1: no quota
                yield Quota(quota / period, file, group)


@dataclass(frozen=True, slots=True)
class Counters:
    """The system's counters at one moment, all in seconds."""

    at: float
    own: float  # processors' time of this process
    idle: float | None  # of the processors that it may run on, summed; None where unknown
    used: tuple[float | None, ...]  # by the groups that have a quota


class FreeProcessors:
    """Measures how many processors this process could use: those that it uses itself, and those that nobody uses."""

    def __init__(
        self,
        proc: Path = PROC,
        root: Path = CGROUPS,
        *,
        clock: Callable[[], float] = time.monotonic,
        own_seconds: Callable[[], float] = time.process_time,
    ) -> None:
        self._proc, self._clock, self._own_seconds = proc, clock, own_seconds
        self._names = {f"cpu{number}" for number in affinity()}
        self._quotas = list(quotas(proc, root))
        self._last = self._read()
        self._free = math.inf

    def __call__(self) -> float:
        """The average of the last window. Infinite before the first one ends and where the system does not tell."""
        if self._clock() - self._last.at >= WINDOW_SECONDS:
            before, self._last = self._last, self._read()
            self._free = min(self._between(before, self._last))
        return self._free

    def _between(self, before: Counters, after: Counters) -> Iterator[float]:
        seconds, own = after.at - before.at, after.own - before.own
        yield math.inf
        if before.idle is not None and after.idle is not None:
            yield (after.idle - before.idle + own) / seconds
        for quota, used_before, used in zip(self._quotas, before.used, after.used, strict=True):
            if used_before is not None and used is not None:
                yield quota.num_processors - (used - used_before - own) / seconds

    def _read(self) -> Counters:
        used = tuple(quota.used_seconds() for quota in self._quotas)
        return Counters(self._clock(), self._own_seconds(), self._idle_seconds(), used)

    def _idle_seconds(self) -> float | None:
        """Since the system's start; waiting for a disk is idle, and what a hypervisor takes away is not."""
        ticks, num_found = 0, 0
        with suppress(OSError, ValueError, IndexError):
            for line in (self._proc / "stat").read_text().splitlines():
                name, *counts = line.split()
                if name in self._names:
                    ticks += int(counts[3]) + int(counts[4])
                    num_found += 1
        return ticks / TICKS_PER_SECOND if num_found else None
