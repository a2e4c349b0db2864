"""Quotas in control groups of both versions, and what other processes leave free, read from files as the kernel writes them."""

import math
import os
from pathlib import Path

import pytest

from app.engine.processors import WINDOW_SECONDS, FreeProcessors, affinity, quotas


class System:
    """A system with two processors and a clock, whose counters a test moves on."""

    def __init__(self, directory: Path, groups: str = "0::/\n") -> None:
        self.proc, self.root = directory / "proc", directory / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.root.mkdir()
        (self.proc / "self" / "cgroup").write_text(groups)
        self.now = self.own = self.idle = self.others = 0.0
        self.pass_by(0)

    def pass_by(self, seconds: float, *, own: float = 0.0, others: float = 0.0) -> None:
        """Time in which this process and others use so many processors."""
        self.now += seconds
        self.own += own * seconds
        self.others += others * seconds
        self.idle += (2 - own - others) * seconds
        half, busy = round(self.idle / 2 * 100), round((self.own + self.others) * 100)
        lines = [f"cpu{n} {busy} 0 0 {half - n} {n} 0 0 0 0 0" for n in (0, 1)]  # a little of it as waiting for a disk
        (self.proc / "stat").write_text("\n".join(["cpu 1 1 1 1 1", *lines, "cpu7 0 0 0 999999 0", "intr 1 2 3", ""]))

    def free_processors(self) -> FreeProcessors:
        return FreeProcessors(self.proc, self.root, clock=lambda: self.now, own_seconds=lambda: self.own)


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def write(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(f"{content}\n")


def test_the_affinity_is_what_the_process_may_run_on() -> None:
    assert affinity() == {0, 1}


@pytest.mark.parametrize(("limit", "expected"), [("150000 100000", [1.5]), ("50000 100000", [0.5]), ("max 100000", [])])
def test_a_containers_quota_of_version_2(tmp_path: Path, limit: str, expected: list[float]) -> None:
    system = System(tmp_path)
    write(system.root, cpu__max=limit)
    assert [quota.num_processors for quota in quotas(system.proc, system.root)] == expected


def test_every_group_above_the_process_may_have_a_quota(tmp_path: Path) -> None:
    system = System(tmp_path, "0::/pods/pod1/main\n")
    write(system.root / "pods" / "pod1" / "main", cpu__max="400000 100000")
    write(system.root / "pods" / "pod1", cpu__max="300000 100000")
    write(system.root / "pods", cpu__max="max 100000")
    write(system.root / "other", cpu__max="100000 100000")
    assert [quota.num_processors for quota in quotas(system.proc, system.root)] == [4, 3]


@pytest.mark.parametrize(("limit", "expected"), [("250000", [2.5]), ("-1", [])])
def test_a_quota_of_version_1(tmp_path: Path, limit: str, expected: list[float]) -> None:
    system = System(tmp_path, "9:memory:/x\n1:cpu,cpuacct:/docker/abc\n0::/\n")
    write(system.root / "cpu" / "docker" / "abc", cpu__cfs_quota_us=limit, cpu__cfs_period_us="100000")
    assert [quota.num_processors for quota in quotas(system.proc, system.root)] == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert list(quotas(tmp_path / "no-proc", tmp_path / "no-groups")) == []


@pytest.mark.parametrize(
    ("own", "others", "free"), [(0, 0, 2), (2, 0, 2), (1.2, 0.2, 1.8), (1, 1, 1), (0.7, 1.3, 0.7), (0, 2, 0)]
)
def test_free_is_what_this_process_uses_and_what_nobody_uses(
    tmp_path: Path, own: float, others: float, free: float
) -> None:
    system = System(tmp_path)
    free_processors = system.free_processors()
    assert free_processors() == math.inf
    system.pass_by(1, own=own, others=others)
    assert free_processors() == pytest.approx(free, abs=0.03)


def test_free_is_averaged_over_a_window_and_follows_the_load(tmp_path: Path) -> None:
    system = System(tmp_path)
    free_processors = system.free_processors()
    system.pass_by(1, own=2)
    assert free_processors() == pytest.approx(2, abs=0.03)
    system.pass_by(WINDOW_SECONDS / 2, others=1)
    assert free_processors() == pytest.approx(2, abs=0.03)  # the window has not ended
    system.pass_by(WINDOW_SECONDS / 2, others=1)
    assert free_processors() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("version", [1, 2])
def test_neighbours_in_the_same_control_group_use_its_quota_up(tmp_path: Path, version: int) -> None:
    system = System(tmp_path, "1:cpu:/\n" if version == 1 else "0::/\n")

    def count(seconds: float) -> None:
        if version == 1:
            write(
                system.root / "cpu",
                cpu__cfs_quota_us="150000",
                cpu__cfs_period_us="100000",
                cpuacct__usage=str(round(seconds * 1e9)),
            )
        else:
            write(system.root, cpu__max="150000 100000", cpu__stat=f"usage_usec {round(seconds * 1e6)}\nuser_usec 5")

    count(10)
    free_processors = system.free_processors()
    system.pass_by(2, own=0.5)
    count(12)  # one processor, half of it by this process
    assert free_processors() == pytest.approx(1.0)


def test_without_counters_all_processors_are_free(tmp_path: Path) -> None:
    moments = iter(range(9))
    free_processors = FreeProcessors(tmp_path / "no-proc", tmp_path, clock=lambda: next(moments))
    assert [free_processors(), free_processors()] == [math.inf, math.inf]
