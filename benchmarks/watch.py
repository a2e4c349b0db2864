"""Watches a server under load from outside: the latency of /health, and the process's memory, files and threads."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sample:
    """A process's resident bytes, open files and threads at one time of the monotonic clock."""

    at: float
    resident_bytes: int
    num_files: int
    num_threads: int


@dataclass(slots=True)
class Watched:
    """The result, complete when the watch ends. A failed /health is infinity in `health_seconds`."""

    samples: list[Sample] = field(default_factory=list)
    health_seconds: list[float] = field(default_factory=list)

    @property
    def peak_bytes(self) -> int:
        return max(sample.resident_bytes for sample in self.samples)

    @property
    def peak_files(self) -> int:
        return max(sample.num_files for sample in self.samples)


def sample(pid: int) -> Sample:
    place = Path(f"/proc/{pid}")
    resident = int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Sample(time.monotonic(), resident, len(os.listdir(place / "fd")), len(os.listdir(place / "task")))  # noqa: PTH208 - counted, not used


@contextmanager
def watching(pid: int, port: int, *, sample_seconds: float = 0.25) -> Iterator[Watched]:
    """Samples the process and requests /health from a separate process, so the load's client does not delay it."""
    watched, stopped = Watched(), threading.Event()
    command = [sys.executable, "-m", "benchmarks.probe", str(port)]
    prober = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert prober.stdout is not None
    prober.stdout.readline()  # it sends requests from now on

    def keep_sampling() -> None:
        while not stopped.wait(sample_seconds):
            watched.samples.append(sample(pid))

    sampler = threading.Thread(target=keep_sampling)
    sampler.start()
    try:
        yield watched
    finally:
        stopped.set()
        sampler.join()
        watched.samples.append(sample(pid))
        watched.health_seconds += json.loads(prober.communicate()[0])
