"""`python -m benchmarks.soak --minutes 30`: does the service's memory grow, or does it slow down, under long use?

Measures the service's maximum rate for a mix of requests, then sends that mix at a share of this rate (Poisson arrivals) for the given
time. The mix includes invalid requests, clients that disconnect, and occasional reloads. Prints the process's memory, files and threads
and its latency. Exits with 1 if any of these grow, or a response is wrong.

The prefix cache fills up to its limit, and again after each reload. The limit is low enough for the cache to be full in the
first third of the run, so that growth after that is a leak. If it was not full in the second third, memory may grow by the limit.
"""

import argparse
import asyncio
import itertools
import json
import math
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from app.engine.process import raise_file_limit
from benchmarks.client import Connection, Endpoint, ProtocolError
from benchmarks.load import ConnectionPool
from benchmarks.served import served, texts
from benchmarks.stats import percentile
from benchmarks.table import format_table
from benchmarks.watch import Sample, Watched, watching

KEY = "soak"
LOGIN = f"Authorization: Bearer {KEY}\r\n"
MIN_MINUTES = 3
LEAVES_AFTER_SECONDS = 0.005
MAX_RELOAD_SECONDS, NUM_RELOADS = 300.0, 6
"""Each third of the run has the same number of reloads, at least two, because a reload briefly takes memory and threads."""
MAX_IN_FLIGHT = 256
"""Arrivals beyond this are skipped and counted: a shared machine may be too slow for a while."""
MAX_GROWTH = 1.05
"""Limits of the last third relative to the second: maximum memory, and median number of open files."""
MORE_FILES, MORE_THREADS = 10, 1
"""Random variation of a third's median; a reload that leaked its threads would add two each time."""
CACHE_MB = {"tiny": 64, "models": 512}
"""The limit of the prefix cache, by kind: full within seconds, and a reload that leaked it would show."""
EVICTED_PAGES = re.compile(r"^reward_prefix_cache_evicted_pages\S* (\S+)$", re.MULTILINE)
MAX_DRIFT = 1.5
"""Limit of the last third's median latency relative to the second's."""


@dataclass(frozen=True, slots=True)
class Call:
    """One kind of request: its path, its body and the expected status."""

    path: str
    body: bytes
    status: int = 200
    leaves: bool = False


@dataclass(slots=True)
class Minute:
    """The responses of one minute, by the time at which the request was due."""

    latencies: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    cache_is_full: bool = False
    """Whether every prefix cache was full in this third, before a reload."""


def mix(count: int, seed: int) -> list[Call]:
    """Calls of every route, in random order."""
    source = random.Random(seed)  # noqa: S311 - requests, not secrets
    some = texts(count * 4, 3, 120, seed)
    calls = []
    for i in range(count):
        a, b, c, d = some[4 * i : 4 * i + 4]
        pair = {"prompt": a, "chosen": b, "rejected": c, "rating": "better"}
        items = [{"prompt": a, "response": text} for text in (b, c, d)]
        rollout = {"policy_logprobs": [-0.5] * 20, "reference_logprobs": [-0.6] * 20}
        kinds = [
            (12, Call("/score", encode({"items": [{"text": a}]}))),
            (3, Call("/score", encode({"items": items}))),
            (1, Call("/score", encode({"items": items[:1], "token_scores": True}))),
            (2, Call("/compare", encode({"pairs": [pair]}))),
            (2, Call("/ppo-reward", encode({"items": [item | rollout for item in items]}))),
            (2, Call("/get_reward", encode({"query": [a]}))),
            (2, Call("/classify", encode({"input": [a, b]}))),
            (1, Call("/predict", encode({"inputs": [[a], [b]]}))),
            (1, Call("/score", encode({"items": [{"txt": a}]}), 422)),
            (1, Call("/score", b'{"items": [', 400)),
            (1, Call("/score", encode({"items": items}), leaves=True)),
        ]
        calls.append(source.choices([call for _, call in kinds], [weight for weight, _ in kinds])[0])
    return calls


def encode(body: object) -> bytes:
    return json.dumps(body).encode()


class Soak:
    """An open loop of calls to one server, and the responses by minute."""

    def __init__(self, port: int, calls: Sequence[Call]) -> None:
        self._port = port
        self._calls = calls
        self._pools = {path: ConnectionPool(Endpoint(port, path, key=KEY)) for path in {call.path for call in calls}}
        self._tasks: set[asyncio.Task[None]] = set()
        self.minutes: list[Minute] = []

    async def most(self, seconds: float, concurrency: int = 32) -> float:
        """Calls per second that the server answers with `concurrency` calls always in flight."""
        ends = time.monotonic() + seconds
        minute, calls = Minute(), itertools.cycle(self._calls)

        async def worker() -> None:
            while time.monotonic() < ends:
                await self._one(next(calls), time.monotonic(), minute)

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return sum(minute.outcomes.values()) / seconds

    async def at_share(self, share: float, seconds: float, seed: int, pid: int) -> Watched:
        """Watches the process for `seconds`, after its maximum rate was measured."""
        await self.most(5)  # warms up
        most = await self.most(15)
        print(f"{most:.0f} requests/s at most; {seconds / 60:g} minutes at {share * most:.0f}", flush=True)
        with watching(pid, self._port, sample_seconds=2.0) as watched:
            await self.run(share * most, seconds, seed)
        return watched

    async def run(self, rate: float, seconds: float, seed: int) -> None:
        source = random.Random(seed)  # noqa: S311 - arrival times, not secrets
        self.minutes = [Minute() for _ in range(math.ceil(seconds / 60))]
        reload_seconds = min(MAX_RELOAD_SECONDS, seconds / NUM_RELOADS)
        started = due = time.monotonic()
        next_reload = started + reload_seconds / 2
        while due < started + seconds:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            minute = self.minutes[int((due - started) // 60)]
            if len(self._tasks) < MAX_IN_FLIGHT:
                self._start(self._one(source.choice(self._calls), due, minute))
            else:
                minute.outcomes["left out"] += 1
            if due > next_reload:
                next_reload += reload_seconds
                self._start(self._reload(minute))
            due += source.expovariate(rate)
        await asyncio.gather(*self._tasks)
        for pool in self._pools.values():
            pool.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, call: Call, due: float, minute: Minute) -> None:
        pool = self._pools[call.path]
        try:
            connection = await pool.take()
            answer = connection.send(pool.endpoint.request_bytes(call.body))
            if call.leaves:
                await asyncio.sleep(LEAVES_AFTER_SECONDS)
                connection.close()
                answer.cancel()
                minute.outcomes["left"] += 1
                return
            response = await answer
            pool.give_back(connection)
        except (OSError, ProtocolError) as error:
            minute.outcomes[f"lost: {error}"] += 1
            return
        is_right = response.status == call.status
        minute.outcomes["as expected" if is_right else f"{response.status} on {call.path}"] += 1
        minute.latencies.append(time.monotonic() - due)

    async def _reload(self, minute: Minute) -> None:
        endpoint = Endpoint(self._port, "/admin/reload", key=KEY)
        connection = await Connection.connect(endpoint)
        metrics = await connection.send(
            f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n{LOGIN}\r\n".encode()
        )
        minute.cache_is_full |= is_full(metrics.body.decode())
        response = await connection.send(endpoint.request_bytes(b""))
        connection.close()
        minute.outcomes["reloads" if response.status == 200 else f"reload answered {response.status}"] += 1


def is_full(metrics: str) -> bool:
    """Whether every model's prefix cache has evicted something since the load, by the text of /metrics."""
    evicted = [float(count) for count in EVICTED_PAGES.findall(metrics)]
    return bool(evicted) and min(evicted) > 0


ALLOWED = {"as expected", "left", "left out", "reloads"}


def slope_mb_per_hour(samples: Sequence[Sample]) -> float:
    """The slope of the least-squares line through the resident memory."""
    mean_at = sum(each.at for each in samples) / len(samples)
    mean = sum(each.resident_bytes for each in samples) / len(samples)
    over = sum((each.at - mean_at) * (each.resident_bytes - mean) for each in samples)
    return over / sum((each.at - mean_at) ** 2 for each in samples) * 3600 / 1e6


def verdict(watched: Watched, minutes: Sequence[Minute], cache_bytes: float) -> tuple[list[str], bool]:
    """(report, whether nothing grew). The first third is warm-up. `cache_bytes` is the limit of all prefix caches."""
    settled = watched.samples[len(watched.samples) // 3 :]
    second, last = settled[: len(settled) // 2], settled[len(settled) // 2 :]
    memory = [max(each.resident_bytes for each in part) / 1e6 for part in (second, last)]
    slope = slope_mb_per_hour(settled)
    files, threads = [[median(map(count, part)) for part in (second, last)] for count in (num_files, num_threads)]
    third = len(minutes) // 3
    was_full = any(minute.cache_is_full for minute in minutes[third : 2 * third])
    cache_mb = 0.0 if was_full else cache_bytes / 1e6  # that the last third may have more
    early, late = [
        percentile([each for minute in part for each in minute.latencies] or [0.0], 50)
        for part in (minutes[third : 2 * third], minutes[2 * third :])
    ]
    outcomes = sum((minute.outcomes for minute in minutes), Counter[str]())
    wrong = {name: count for name, count in outcomes.items() if name not in ALLOWED}
    good = (
        not wrong
        and memory[1] <= MAX_GROWTH * memory[0] + cache_mb
        and threads[1] <= threads[0] + MORE_THREADS
        and files[1] <= MAX_GROWTH * files[0] + MORE_FILES
        and late <= MAX_DRIFT * early + 0.005
    )
    health = ", ".join(
        f"{name} {1000 * percentile(watched.health_seconds, percent):.0f} ms"
        for name, percent in (("p50", 50), ("p99", 99), ("max", 100))
    )
    words = [
        f"memory at most {memory[0]:.0f} MB in the second third, {memory[1]:.0f} in the last; slope {slope:+.1f} MB an hour; "
        + (
            "the prefix cache was full"
            if was_full
            else f"the prefix cache was not full and may grow by {cache_mb:.0f} MB"
        ),
        f"open files {files[0]:g} in the second third, {files[1]:g} in the last (median); threads {threads[0]:g} and {threads[1]:g}",
        f"median latency {1000 * early:.1f} ms in the second third, {1000 * late:.1f} ms in the last",
        f"answers: {dict(outcomes)}",
        f"/health {health}",
        "nothing grows" if good else f"IT GROWS, OR ANSWERS WRONGLY: {wrong}",
    ]
    return words, good


def num_files(each: Sample) -> int:
    return each.num_files


def num_threads(each: Sample) -> int:
    return each.num_threads


def by_minute(watched: Watched, minutes: Sequence[Minute], every: int) -> str:
    started = watched.samples[0].at
    rows = []
    for i in range(0, len(minutes), every):
        latencies = [each for minute in minutes[i : i + every] for each in minute.latencies]
        held = [each for each in watched.samples if i <= (each.at - started) / 60 < i + every]
        if latencies and held:
            rows.append(
                [
                    f"{i}-{i + every}",
                    f"{len(latencies) / (60 * every):.0f}",
                    f"{1000 * percentile(latencies, 50):.1f}",
                    f"{1000 * percentile(latencies, 99):.1f}",
                    f"{max(each.resident_bytes for each in held) / 1e6:.1f}",
                    str(max(map(num_files, held))),
                    str(max(map(num_threads, held))),
                ]
            )
    return format_table(["minutes", "req/s", "p50 ms", "p99 ms", "RSS MB", "files", "threads"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--share", type=float, default=0.8, help="of what the service can do")
    parser.add_argument("--kind", choices=("tiny", "models"), default="tiny")
    parser.add_argument("--threads", type=int, default=1, help="of the service's forward")
    parser.add_argument(
        "--prefix-cache-mb", type=float, help="the service's setting; by default what fills within seconds"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work-dir", type=Path, default=Path(__file__).parent / "work")
    options = parser.parse_args()
    if options.minutes < MIN_MINUTES:
        parser.error(f"--minutes {options.minutes:g} is too short to see anything grow; give {MIN_MINUTES} or more")
    raise_file_limit()
    calls = mix(2000, options.seed)
    cache_mb = CACHE_MB[options.kind] if options.prefix_cache_mb is None else options.prefix_cache_mb
    settings = {"API_KEYS": KEY, "PREFIX_CACHE_MB": f"{cache_mb:g}"}
    with served(options.kind, options.work_dir, num_threads=options.threads, **settings) as process:
        soak = Soak(process.port, calls)
        watched = asyncio.run(soak.at_share(options.share, 60 * options.minutes, options.seed, process.pid))
        print(by_minute(watched, soak.minutes, max(1, round(options.minutes / 10))))
        words, good = verdict(watched, soak.minutes, 1e6 * cache_mb)
        print("\n".join(["", *words]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
