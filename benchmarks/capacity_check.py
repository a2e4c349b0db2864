"""Compares the capacity model with this machine: `python -m benchmarks.capacity_check`, one minute on a quiet machine. With
`--published`, compares it with the table in docs/performance.md, which `python -m benchmarks run` measured.

Scores the benchmark's workloads with the engine in this process, and measures the GEMM rate around each. The efficiency
comes from `distinct` alone; with it, the model predicts the other workloads, and the predictions are compared with the measurements. Also
measures a forward pass's memory per token and the tokenizer's rate. It does not measure HTTP: `python -m benchmarks run` does.
"""

import argparse
import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from app.engine.batch import Batch
from app.engine.sequence import TokenSequence
from app.service import load_models
from app.settings import Settings
from benchmarks.capacity import working_bytes_per_token
from benchmarks.flops import ModelShape, Work, shared_work, trunk_flops
from benchmarks.gemm import gemm_rate
from benchmarks.servers.in_process import Score, open_engine
from benchmarks.stats import percentile
from benchmarks.table import format_table
from benchmarks.workloads import build_workload, tokenizer_words

WORK_DIR = Path(__file__).parent / "work"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
FITTED = "distinct"
WORKLOADS = (FITTED, "groups", "pairs", "long")
GEMM_ROWS = 4096
HEADERS = ("workload", "", "sharing", "share of GEMM", "predicted tokens/s", "measured tokens/s", "measured/predicted")
MEMORY_TOKENS = (1024, 4096)


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of one workload: its texts' work with every prefix shared, and the seconds it took."""

    workload: str
    num_tokens: int
    work: Work
    seconds: float
    gemm_flops: float

    def gemm_seconds(self, shape: ModelShape) -> float:
        """Seconds that the work's matrix products would take at the GEMM rate."""
        return trunk_flops(shape, self.work, pruned_last_layer=True) / self.gemm_flops


def compare(passes: Sequence[Pass], shape: ModelShape) -> list[tuple[str, ...]]:
    """One row per workload: the prediction from the GEMM rate, `distinct`'s efficiency and the texts' sharing, and the measurement."""
    efficiency = percentile([each.gemm_seconds(shape) / each.seconds for each in passes if each.workload == FITTED], 50)
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(each.workload for each in passes):
        own = [each for each in passes if each.workload == name]
        share = percentile([each.gemm_seconds(shape) / each.seconds for each in own], 50)
        sharing = percentile([1 - each.work.num_rows / each.num_tokens for each in own], 50)
        predicted = percentile([each.num_tokens / each.gemm_seconds(shape) for each in own], 50) * efficiency
        measured = percentile([each.num_tokens / each.seconds for each in own], 50)
        kind = "fitted" if name == FITTED else "predicted"
        figures = f"{predicted:,.0f}", f"{measured:,.0f}", f"{measured / predicted:.2f}"
        rows.append((name, kind, f"{sharing:.2f}", f"{share:.2f}", *figures))
    return rows


def published(tokenizer: Tokenizer) -> list[Pass]:
    """The rows in docs/performance.md of the deep checkpoint. Their GEMM rate is unknown and cancels out."""
    words = tokenizer_words(tokenizer.get_vocab())
    rates = re.findall(r"^\| `(\w+)`: [^|]*\| ([\d.]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    passes = []
    for name, rate in rates:
        texts = build_workload(name, words, 0).texts
        sequences = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        num_tokens = sum(map(len, sequences))
        passes.append(Pass(name, num_tokens, shared_work(sequences), len(texts) / float(rate), gemm_flops=330e9))
    return passes


async def measure(checkpoint: Path, tokenizer: Tokenizer, shape: ModelShape, repeats: int) -> list[Pass]:
    """Runs the workloads in turn, each repeat with new texts and with the GEMM rate measured before and after."""
    words = tokenizer_words(tokenizer.get_vocab())
    passes: list[Pass] = []
    async with open_engine(checkpoint, torch.get_num_threads()) as score:
        await score_all(score, build_workload(FITTED, words, 10_000).texts[:24])
        before = gemm_rate(shape, GEMM_ROWS)
        for repeat in range(repeats):
            for name in WORKLOADS:
                texts = build_workload(name, words, repeat).texts
                sequences = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
                started = time.perf_counter()
                await score_all(score, texts)
                seconds = time.perf_counter() - started
                after = gemm_rate(shape, GEMM_ROWS)
                num_tokens = sum(map(len, sequences))
                passes.append(Pass(name, num_tokens, shared_work(sequences), seconds, (before + after) / 2))
                before = after
    return passes


async def score_all(score: Score, texts: Sequence[str]) -> None:
    await asyncio.gather(*map(score, texts))


def tokenizer_rate(tokenizer: Tokenizer, min_seconds: float = 2.0) -> float:
    """Tokens per second of one tokenizer thread, on texts like those of trainers."""
    texts = list(build_workload("groups", tokenizer_words(tokenizer.get_vocab()), 0).texts)
    num_tokens, started = 0, time.perf_counter()
    while time.perf_counter() - started < min_seconds:
        num_tokens += sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts))
    return num_tokens / (time.perf_counter() - started)


def forward_bytes_per_token(checkpoint: Path) -> float:
    """Bytes by which the process's peak memory grows per token of a batch, for sequences of 256 tokens without shared prefixes."""
    model = load_models(Settings(safety_model="", helpfulness_model=str(checkpoint)))["helpfulness"]
    peaks = []
    for num_tokens in MEMORY_TOKENS:
        sequences = [TokenSequence.of([1000 + n, *range(2000, 2255)]) for n in range(num_tokens // 256)]
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
        model.score(Batch.of(sequences))
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peaks.append(1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]))
    return (peaks[1] - peaks[0]) / (MEMORY_TOKENS[1] - MEMORY_TOKENS[0])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity_check", description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=WORK_DIR, help="for the checkpoint")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--published", action="store_true", help="measure nothing, take the figures of docs/performance.md"
    )
    arguments = parser.parse_args()
    from benchmarks.checkpoints import ensure_checkpoints

    checkpoint = ensure_checkpoints(arguments.work_dir)["deep"]
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    shape = ModelShape.from_config(json.loads((checkpoint / "config.json").read_text(encoding="utf-8")))
    if arguments.published:
        print(format_table(HEADERS, compare(published(tokenizer), shape)))
        return
    measured_bytes, predicted_bytes = forward_bytes_per_token(checkpoint), working_bytes_per_token(shape, 4)
    passes = asyncio.run(measure(checkpoint, tokenizer, shape, arguments.repeats))
    print(format_table(HEADERS, compare(passes, shape)))
    gemm = [each.gemm_flops / 1e9 for each in passes]
    print(f"\nGEMM rate {min(gemm):.0f}-{max(gemm):.0f} GFLOP/s; tokenizer {tokenizer_rate(tokenizer):,.0f} tokens/s")
    print(f"memory of a forward: {measured_bytes:,.0f} bytes a token, predicted {predicted_bytes:,}")


if __name__ == "__main__":
    main()
