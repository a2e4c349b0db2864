"""`python -m benchmarks.storm`: thousands of requests at once, then badly behaved clients.

First every text is scored alone. Then all are sent at once, each on its own connection: each must get its own score (with the same
bits, if the service promises batch invariance), or a 503 with Retry-After, or a 504. Then normal traffic runs without and with crowds of
rough clients (`rough`), each alone and all together. Exits with 1 if a request was lost, mixed up or left hanging, or if /health
was slow during the storm.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from app.engine.process import raise_file_limit
from benchmarks.client import Connection, Endpoint, ProtocolError, Response
from benchmarks.load import closed_loop
from benchmarks.rough import CROWDS, crowds
from benchmarks.served import lone_scores, score_body, scores_of, served, texts
from benchmarks.servers.process import ServerProcess
from benchmarks.stats import percentile
from benchmarks.table import format_table
from benchmarks.watch import Watched, watching

MAX_SECONDS = 150.0
"""Longer than the service's own deadline; a request without a response by then hangs."""
TOLERANCE = 1e-5
MAX_HEALTH_SECONDS = 0.1
NORMAL_CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Answered:
    """One request of the storm: its outcome, and when it came."""

    outcome: str
    seconds: float


async def storm(
    endpoint: Endpoint, bodies: list[bytes], expected: list[dict[str, float]], exact: bool
) -> list[Answered]:
    """Sends all bodies at once, each on a connection of its own."""

    async def one(body: bytes, own: dict[str, float]) -> Answered:
        started = time.monotonic()
        try:
            async with asyncio.timeout(MAX_SECONDS):
                connection = await Connection.connect(endpoint)
                response = await connection.send(endpoint.request_bytes(body))
            outcome = judge(response, own, exact)
            connection.close()
        except TimeoutError:
            outcome = "hung"
        except (OSError, ProtocolError) as error:
            outcome = f"lost: {error}"
        return Answered(outcome, time.monotonic() - started)

    return await asyncio.gather(*(one(*each) for each in zip(bodies, expected, strict=True)))


def judge(response: Response, own: dict[str, float], exact: bool) -> str:
    """`scored`, `503`, `504`, or a description of an outcome that must not occur."""
    match response.status:
        case 200:
            scores = scores_of(response.body)
            limit = 0.0 if exact else TOLERANCE
            right = all(abs(scores[name] - own[name]) <= limit * max(1, abs(own[name])) for name in own)
            return "scored" if right else f"wrong score: {scores} for {own}"
        case 503:
            return "503" if b"\r\nretry-after:" in response.head.lower() else "503 without Retry-After"
        case 504:
            return "504"
        case other:
            return f"{other}: {response.body[:200]!r}"


ALLOWED = ("scored", "503", "504")


def with_crowds(process: ServerProcess, bodies: list[bytes]) -> tuple[list[list[str]], bool]:
    """A table's rows: normal traffic alone, with each crowd, with all of them, and right after they are gone, with p50 and p99
    relative to those alone; and whether /health always answered."""
    endpoint = Endpoint(process.port, "/score")
    each = {f"{count} x {name}": (name,) for name, (_, count) in CROWDS.items()}
    casts = {"none": (), **each, "all of them": tuple(CROWDS), "none any more": ()}
    seen: dict[str, tuple[tuple[float, ...], Watched]] = {}
    for label, names in casts.items():
        with contextlib.ExitStack() as stack:
            if names:
                stack.enter_context(crowds(names, process.port))
            watched = stack.enter_context(watching(process.pid, process.port))
            run = asyncio.run(closed_loop(endpoint, bodies, NORMAL_CONCURRENCY))
        seen[label] = run.latencies, watched
    alone, _ = seen["none"]
    rows = [
        [
            label,
            *figures(latencies, watched),
            *(f"{percentile(latencies, percent) / percentile(alone, percent):.2f}" for percent in (50, 99)),
        ]
        for label, (latencies, watched) in seen.items()
    ]
    return rows, all(math.isfinite(max(watched.health_seconds)) for _, watched in seen.values())


def figures(seconds: "tuple[float, ...] | list[float]", watched: Watched) -> list[str]:
    health = watched.health_seconds
    times = [
        percentile(seconds, 50),
        percentile(seconds, 99),
        percentile(health, 50),
        percentile(health, 99),
        max(health),
    ]
    return [*(f"{1000 * each:.1f}" for each in times), f"{watched.peak_bytes / 1e6:.0f}", str(watched.peak_files)]


HEADERS = ["p50 ms", "p99 ms", "health p50", "health p99", "health max", "RSS MB", "files"]


def is_exact(port: int) -> bool:
    """Whether the service promises bitwise batch invariance."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/info")
    models = json.loads(connection.getresponse().read())["models"]
    connection.close()
    return all(model["batch_invariant"] for model in models.values())


def run(kind: str, options: argparse.Namespace) -> bool:
    """Runs the storm on one kind of checkpoint and prints the tables; returns whether all outcomes were allowed."""
    with served(kind, options.work_dir, num_threads=options.threads) as process:
        endpoint, exact = Endpoint(process.port, "/score"), is_exact(process.port)
        num_texts = options.requests if kind == "tiny" else min(options.requests, 500)
        distinct = [score_body(text) for text in texts(num_texts, 2, 300, seed=options.seed)]
        lone = asyncio.run(lone_scores(endpoint, distinct))
        order = [i % num_texts for i in range(options.requests)]
        bodies, expected = [distinct[i] for i in order], [lone[i] for i in order]
        with watching(process.pid, process.port) as before:
            time.sleep(2)
        with watching(process.pid, process.port) as watched:
            started = time.monotonic()
            answers = asyncio.run(storm(endpoint, bodies, expected, exact))
            seconds = time.monotonic() - started
        outcomes = Counter(answer.outcome for answer in answers)
        compared = "to the bit" if exact else f"within {TOLERANCE:g}"
        print(
            f"\n{kind}: {options.requests} requests at once, {seconds:.1f} s, scores compared {compared}: {dict(outcomes)}"
        )
        times = [answer.seconds for answer in answers]
        rows = [["before", "-", "-", *figures([0.0], before)[2:]], ["storm", *figures(times, watched)]]
        print(format_table(["", *HEADERS], rows))
        good = set(outcomes) <= set(ALLOWED) and percentile(watched.health_seconds, 99) < MAX_HEALTH_SECONDS
        if options.normal:
            normal = options.normal if kind == "tiny" else options.normal // 10
            rows, healthy = with_crowds(process, distinct[:normal] * 2)
            print(f"\n{kind}: normal traffic (one-item requests, {NORMAL_CONCURRENCY} at a time) beside rough clients")
            print(format_table(["rough clients", *HEADERS, "p50 / alone", "p99 / alone"], rows))
            good = good and healthy
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storm", description=__doc__)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument(
        "--normal",
        type=int,
        default=2000,
        help="texts of the normal traffic, a tenth of it on models/; each comes twice",
    )
    parser.add_argument("--kinds", nargs="+", choices=("tiny", "models"), default=["tiny", "models"])
    parser.add_argument("--threads", type=int, default=1, help="of the service's forward")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work-dir", type=Path, default=Path(__file__).parent / "work")
    options = parser.parse_args()
    raise_file_limit()
    return 0 if min([run(kind, options) for kind in options.kinds]) else 1


if __name__ == "__main__":
    sys.exit(main())
