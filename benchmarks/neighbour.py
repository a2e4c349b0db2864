"""Measures the cost of a busy neighbour: the engine on all cores, with and without another process that computes.

`fixed` is an engine with REWARD_NUM_THREADS: always one thread per physical core. `following` is the default: as many threads as
cores are free. `watching` reads the same counters but treats the machine as quiet, to measure the cost of the default on a quiet
machine even if the machine is not quiet. Each engine is in a separate process; the engines take turns, and each turn is measured
first without and then with the neighbour.

Other programs on the machine are neighbours too. The table shows how many cores they used.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from app.engine import num_threads
from app.engine.inputs import Input, Text
from app.engine.processors import FreeProcessors, affinity
from app.service import Service
from app.settings import Settings
from benchmarks.checkpoints import ensure_checkpoints
from benchmarks.served import SENTENCE
from benchmarks.stats import Spread
from benchmarks.table import format_table

MODES = ("fixed", "watching", "following")
STREAMS = {"small": [(1, 50)] * 15, "medium": [(4, 60)] * 4, "large": [(10, 120)]}
"""The consecutive requests of a turn, by name: the number of texts of each, and of words of each text."""
SETTLE_SECONDS = 0.6

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """One stream by one engine, in seconds; and the processors that other programs used in the quiet half."""

    stream: str
    mode: str
    quiet: float
    busy: float
    others: float


def measure_neighbour(work_dir: Path, repeats: int) -> list[Turn]:
    """Each stream by each engine `repeats` times; the engines take turns in rotated order."""
    checkpoint = ensure_checkpoints(work_dir)["deep"]
    turns: list[Turn] = []
    with contextlib.ExitStack() as running:
        engines = {mode: running.enter_context(engine(checkpoint, mode)) for mode in MODES}
        neighbour = running.enter_context(paused_neighbour())
        seeds = iter(range(10**9))
        for repeat in range(repeats):
            for stream in STREAMS:
                for mode in MODES[repeat % len(MODES) :] + MODES[: repeat % len(MODES)]:
                    turns.append(take_turn(engines[mode], neighbour, stream, mode, seeds))
                    logger.info("%s", turns[-1])
    return turns


def take_turn(
    process: "subprocess.Popen[str]", neighbour: "subprocess.Popen[bytes]", stream: str, mode: str, seeds: Iterator[int]
) -> Turn:
    time.sleep(SETTLE_SECONDS)
    run(process, "small", next(seeds))
    quiet, others = run(process, stream, next(seeds))
    neighbour.send_signal(signal.SIGCONT)
    try:
        time.sleep(SETTLE_SECONDS)
        run(process, "small", next(seeds))
        busy, _ = run(process, stream, next(seeds))
    finally:
        neighbour.send_signal(signal.SIGSTOP)
    return Turn(stream, mode, quiet, busy, others)


def run(process: "subprocess.Popen[str]", stream: str, seed: int) -> tuple[float, float]:
    """The seconds of a stream, and the processors that other processes used meanwhile."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{stream} {seed}\n")
    process.stdin.flush()
    seconds, others = json.loads(process.stdout.readline())
    return seconds, others


@contextlib.contextmanager
def engine(checkpoint: Path, mode: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "benchmarks.neighbour", str(checkpoint), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"the engine with {mode} threads did not start")
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def paused_neighbour() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that computes without end once it gets SIGCONT."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        process.send_signal(signal.SIGSTOP)
        try:
            yield process
        finally:
            process.kill()


def format_neighbour(turns: Sequence[Turn]) -> str:
    """Busy divided by quiet throughput of each turn, and both divided by the quiet throughput of `fixed` in the same repeat."""
    rows = []
    for stream in STREAMS:
        by_mode = {mode: [turn for turn in turns if (turn.stream, turn.mode) == (stream, mode)] for mode in MODES}
        for mode, own in by_mode.items():
            pairs = list(zip(by_mode["fixed"], own, strict=True))
            if pairs:
                rows.append(
                    (
                        stream,
                        mode,
                        str(len(own)),
                        f"{Spread.of([turn.quiet for turn in own]).median:.2f}",
                        f"{Spread.of([turn.busy for turn in own]).median:.2f}",
                        ratio([turn.quiet / turn.busy for turn in own]),
                        ratio([fixed.quiet / turn.quiet for fixed, turn in pairs]),
                        ratio([fixed.quiet / turn.busy for fixed, turn in pairs]),
                        f"{Spread.of([turn.others for turn in own]).median:.2f}",
                    )
                )
    headers = ("stream", "threads", "turns", "quiet s", "busy s", "busy / quiet", "quiet / fixed's quiet")
    return format_table((*headers, "busy / fixed's quiet", "others"), rows)


def ratio(values: Sequence[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


async def serve_streams(checkpoint: Path, mode: str) -> None:
    """Reads `stream seed` lines, runs each, writes the seconds and the processors that others used."""
    given = torch.get_num_threads() if mode == "fixed" else None
    if mode == "watching":
        num_threads.SPARE = math.inf
    settings = Settings(safety_model="", helpfulness_model=str(checkpoint), num_threads=given, prefix_cache_mb=0)
    service = Service(settings)
    await service.load()
    await service.wait_until_ready()
    model_engine = service.ready_engine()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        stream, seed = line.split()
        source = random.Random(int(seed))  # noqa: S311 - texts, not secrets
        free, started = FreeProcessors(), time.perf_counter()
        for num_texts, num_words in STREAMS[stream]:
            texts = [" ".join(source.choices(SENTENCE.split(), k=num_words)) for _ in range(num_texts)]
            await model_engine.score([Input(Text(text)) for text in texts])
        seconds = time.perf_counter() - started
        print(json.dumps([seconds, max(len(affinity()) - free(), 0.0)]), flush=True)
    await service.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("mode", choices=MODES)
    arguments = parser.parse_args()
    asyncio.run(serve_streams(arguments.checkpoint, arguments.mode))


if __name__ == "__main__":
    main()
