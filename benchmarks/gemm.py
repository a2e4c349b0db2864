"""The machine's fp32 matrix-product rate on the shapes of a model's own projections.

`echo | python -m benchmarks.gemm CONFIG_JSON --rows 4096 --threads 2` measures once per input line and prints FLOP/s.
It is a separate process (`reference.GemmMeter`), so that the load generator has neither torch nor its threads.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import linear

from benchmarks.flops import ModelShape, linear_flops_per_row


def gemm_rate(shape: ModelShape, num_rows: int, min_seconds: float = 1.5) -> float:
    """FLOP/s of one decoder layer's seven products on `num_rows` rows: all products' FLOPs over the sum of their median times."""
    generator = torch.Generator().manual_seed(0)
    seconds = 0.0
    for num_in, num_out in shape.projections:
        rows = torch.randn(num_rows, num_in, generator=generator)
        weight = torch.randn(num_out, num_in, generator=generator)
        seconds += _median_seconds(rows, weight, min_seconds / len(shape.projections))
    return num_rows * linear_flops_per_row(shape) / seconds


def _median_seconds(rows: torch.Tensor, weight: torch.Tensor, min_seconds: float) -> float:
    linear(rows, weight)
    times: list[float] = []
    while sum(times) < min_seconds or len(times) < 5:
        started = time.perf_counter()
        linear(rows, weight)
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="a checkpoint's config.json")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = ModelShape.from_config(json.loads(arguments.config.read_text()))
    for _ in sys.stdin:
        with torch.inference_mode():
            print(gemm_rate(shape, arguments.rows), flush=True)


if __name__ == "__main__":
    main()
