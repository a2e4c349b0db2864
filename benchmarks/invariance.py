"""Measures the cost of batch invariance: the engine with and without it, on the same texts.

`strict` is the engine. `loose` uses MKL's default mode, in which sums may depend on the number of rows. `plain` also computes attention in
one call per sequence and pads no rows, as one would without the promise of invariance. Each runs in a separate process, in turn,
since MKL reads its mode once.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from app.engine import packed
from app.engine.attention import last_layer
from app.engine.attention.backend import LayerOptions
from app.engine.attention.cpu import Queries, by_head, by_token, own_queries
from app.engine.row_layout import RowLayout
from benchmarks.checkpoints import ensure_checkpoints
from benchmarks.servers.in_process import open_engine
from benchmarks.stats import Spread
from benchmarks.table import format_table
from benchmarks.workloads import build_workload, tokenizer_words

MODES: dict[str, dict[str, str]] = {
    "strict": {},
    "loose": {"MKL_CBWR": "AUTO"},
    "plain": {"MKL_CBWR": "AUTO"},
}
WORKLOADS = ("distinct", "groups", "pairs")


def measure_invariance(work_dir: Path, repeats: int, threads: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of each workload in each mode, one per repeat; the modes alternate, so they run under the same conditions."""
    ensure_checkpoints(work_dir)
    seconds: dict[tuple[str, str], list[float]] = {(w, mode): [] for w in WORKLOADS for mode in MODES}
    for repeat in range(repeats):
        for mode, environment in MODES.items():
            for workload, measured in _run_child(work_dir, mode, environment, repeat, threads).items():
                seconds[workload, mode].append(measured)
    return seconds


def format_invariance(seconds: Mapping[tuple[str, str], Sequence[float]]) -> str:
    rows = []
    for (workload, mode), measured in seconds.items():
        own = Spread.of(measured)
        ratio = Spread.of([strict / this for strict, this in zip(seconds[workload, "strict"], measured, strict=True)])
        rows.append(
            (
                workload,
                mode,
                f"{own.median:.2f}",
                f"{ratio.median - 1:+.1%}",
                f"{ratio.low - 1:+.1%} {ratio.high - 1:+.1%}",
            )
        )
    return format_table(("workload", "engine", "seconds", "strict costs", "low high"), rows)


def _run_child(
    work_dir: Path, mode: str, environment: Mapping[str, str], repeat: int, threads: int
) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.invariance", str(work_dir), mode, str(repeat), str(threads)]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


class PlainAttention:
    """Replaces `BlockAttention`: one call per sequence for its own queries, over the keys that they may attend to."""

    def __init__(self, wanted: list[Queries]) -> None:
        self.wanted = wanted

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: LayerOptions) -> Tensor:
        assert options.window is None
        assert options.softcap is None
        queries, keys, values = by_token(query[0]), by_token(key[0]), by_token(value[0])
        num_heads, num_key_value_heads = query.shape[1], key.shape[1]
        out = queries.new_zeros(query.shape[2], num_heads * value.shape[3])  # (rows, heads * value_dim)
        for each in self.wanted:
            num_keys = int(each.positions[-1]) + 1
            rows, key_rows = torch.from_numpy(each.rows), torch.from_numpy(each.path[:num_keys])
            is_whole = len(each.positions) == num_keys
            seen = torch.from_numpy(np.arange(num_keys) <= each.positions[:, None])  # (queries, keys)
            attended = scaled_dot_product_attention(
                by_head(queries, rows, 1, num_heads),
                by_head(keys, key_rows, 1, num_key_value_heads),
                by_head(values, key_rows, 1, num_key_value_heads),
                attn_mask=None if is_whole else seen,
                is_causal=is_whole,
                scale=options.scaling,
                enable_gqa=True,
            )
            out.index_copy_(0, rows, attended.transpose(1, 2).reshape(len(each.rows), -1))
        return out.view(1, query.shape[2], num_heads, value.shape[3])

    def upload(self, device: torch.device, windows: Iterable[int | None]) -> None:
        """Does nothing: there is nothing to keep on the device."""


class PlainBackend:
    def num_rows(self, num_tokens: int, row_multiple: int) -> int:  # noqa: ARG002 - the protocol's
        return num_tokens

    def num_keys(self, num_rows: int, num_cached: int) -> int:
        return num_rows + num_cached

    def prepare(self, layout: RowLayout, num_rows: int) -> PlainAttention:
        return PlainAttention(own_queries(layout, num_rows))


def remove_invariance() -> None:
    packed.BACKENDS["blocks"] = PlainBackend()
    last_layer.BlockAttention = PlainAttention  # type: ignore[assignment, attr-defined]


async def _measure(checkpoint: Path, repeat: int, threads: int) -> dict[str, float]:
    measured = {}
    async with open_engine(checkpoint, threads) as score:
        words = tokenizer_words(json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"])
        for name in WORKLOADS:
            warm, timed = (build_workload(name, words, seed) for seed in (1000 + repeat, repeat))
            await asyncio.gather(*map(score, warm.texts[: len(warm.texts) // 4]))
            started = time.perf_counter()
            await asyncio.gather(*map(score, timed.texts))
            measured[name] = time.perf_counter() - started
    return measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("mode", choices=list(MODES))
    parser.add_argument("repeat", type=int)
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    if arguments.mode == "plain":
        remove_invariance()
    checkpoint = ensure_checkpoints(arguments.work_dir)["deep"]
    print(json.dumps(asyncio.run(_measure(checkpoint, arguments.repeat, arguments.threads))))


if __name__ == "__main__":
    main()
