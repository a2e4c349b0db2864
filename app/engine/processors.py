"""How many processors this process may use, and how many of them are free, from the system's counters.

Knows neither torch nor models.
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
"""The use of processors is averaged over this time. The kernel counts in hundredths of a second."""
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True, slots=True)
class Quota:
    """A control group's CPU quota, such as that of a container with `--cpus 1.5`."""

    num_processors: float
    limit_file: Path
    group: ControlGroup

    def used_seconds(self) -> float | None:
        """The CPU time that all processes of the group have used since it was created; None if unknown."""
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
    """The CPU quotas of this process, from control groups of version 1 and 2; nested groups may have one each."""
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
    """The system's counters at one time, all in seconds."""

    at: float
    own: float  # CPU time of this process
    idle: float | None  # idle time of the processors that it may run on, summed; None if unknown
    used: tuple[float | None, ...]  # CPU time of each group with a quota


class FreeProcessors:
    """Measures how many processors this process could use: those that it uses now, and those that are idle."""

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
        """The average over the last window. Infinite before the first window ends, and if the system has no counters."""
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
        """Idle seconds since the system's start. Waiting for a disk counts as idle, time taken by a hypervisor does not."""
        ticks, num_found = 0, 0
        with suppress(OSError, ValueError, IndexError):
            for line in (self._proc / "stat").read_text().splitlines():
                name, *counts = line.split()
                if name in self._names:
                    ticks += int(counts[3]) + int(counts[4])
                    num_found += 1
        return ticks / TICKS_PER_SECOND if num_found else None
