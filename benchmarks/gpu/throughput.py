"""Throughput of an 8B Llama in bfloat16 on this GPU, compared with transformers' own padded forward pass.

`python -m benchmarks gpu`. The weights are random and made on the device. Three workloads, of token ids instead of texts:

distinct   texts of 20 to 470 tokens that share nothing, all at once
groups     prompts of 140 to 340 tokens with 16 responses of 20 to 200 each, all at once
trickle    prompts of about 1,200 tokens with 12 responses of about 60, interleaved, 4 requests in flight

The service's side is its engine: queue, prefix cache, packed forward, head. The other side is the same model's forward with
SDPA, padded on the right, sorted by length, as many sequences per forward as the service's batch has tokens; on trickle, the
4 in flight. Both run once before they are timed. The last line is JSON.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from app.checkpoints.memory import available_bytes, prefix_cache_bytes
from app.engine.attention.cuda import num_graphs
from app.engine.batch import Batch
from app.engine.cache_test import add_cache
from app.engine.engine import Engine
from app.engine.inputs import Input, TokenIds
from app.engine.reward_model import ExecutionPlan, RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from app.engine.warm_up import peak_bytes, warm_up
from benchmarks.gpu.machine import Watch, about, parse_device, synchronize
from benchmarks.gpu.models import make_model, make_net

LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
TINY = {
    **LLAMA_8B,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
IN_FLIGHT = {"distinct": 10_000, "groups": 10_000, "trickle": 4}
CACHE_SHARE = 0.5
"""Share of the memory that is free after warm-up for the prefix cache; the padded forward passes need the rest."""
NUM_REPEATS = 3  # on a GPU; 1 on the CPU


@dataclass(frozen=True, slots=True)
class Result:
    """Medians over the repeats, each with different token ids."""

    workload: str
    num_tokens: int
    num_computed_tokens: int
    seconds: float
    tokens_per_second: float
    share_of_gemm_rate: float
    """FLOPs per second of the trunk's matrices on the computed tokens, divided by the rate of bare products of these shapes."""
    padded_seconds: float
    ratio: float  # padded_seconds / seconds
    largest_score_difference: float


def workloads(rng: np.random.Generator, vocab_size: int, scale: int) -> dict[str, list[list[int]]]:
    """Token ids, `scale` times as many as the servers' benchmark sends."""

    def some(low: int, high: int) -> list[int]:
        return [int(i) for i in rng.integers(1, vocab_size, int(rng.integers(low, high + 1)))]

    distinct = [some(20, 470) for _ in range(96 * scale)]
    groups = []
    for _ in range(6 * scale):
        prompt = some(140, 340)
        groups += [prompt + some(20, 200) for _ in range(16)]
    prompts = [some(1150, 1250) for _ in range(8)]
    trickle = [prompt + some(40, 80) for _ in range(12) for prompt in prompts]
    return {"distinct": distinct, "groups": groups, "trickle": trickle}


async def serve(model: RewardModel, lists: list[list[int]], in_flight: int) -> tuple[float, list[float], int]:
    """Seconds, scores and computed tokens, with one request per list and a limited number at a time."""
    engine = Engine({model.name: model}, max_waiting_requests=100_000)
    engine.start()
    room = asyncio.Semaphore(in_flight)

    async def ask(token_ids: list[int]) -> tuple[float, int]:
        async with room:
            scores = await engine.score([Input(TokenIds(token_ids))])
        return scores.items[0][model.name].score, scores.num_computed_tokens

    try:
        started = time.perf_counter()
        answers = await asyncio.gather(*map(ask, lists))
        seconds = time.perf_counter() - started
    finally:
        engine.reject_all()
        await asyncio.to_thread(engine.close)
    return seconds, [score for score, _ in answers], sum(computed for _, computed in answers)


def score_padded(model: RewardModel, lists: list[list[int]], in_flight: int) -> tuple[float, list[float]]:
    """Seconds and scores of transformers' padded forward pass, with a maximum number of sequences at a time."""
    plan, cache = model.plan, model.cache
    model.plan, model.cache = ExecutionPlan("padded", "for comparison"), None
    sequences = [TokenSequence.of(token_ids) for token_ids in lists]
    try:
        started = time.perf_counter()
        scores: list[float] = []
        for first in range(0, len(sequences), in_flight):
            scores += [each.score for each in model.score(Batch.of(sequences[first : first + in_flight]))]
        return time.perf_counter() - started, scores
    finally:
        model.plan, model.cache = plan, cache


def gemm_flops(model: RewardModel, num_rows: int) -> float:
    """FLOP/s of bare products with a decoder layer's matrices on this number of rows."""
    device, dtype = model.device, model.dtype
    layer = model.trunk.layers[0]
    weights = [weight for weight in layer.parameters() if weight.ndim > 1]
    inputs = [torch.randn(num_rows, weight.shape[1], device=device, dtype=dtype) for weight in weights]

    def run() -> None:
        for rows, weight in zip(inputs, weights, strict=True):
            torch.nn.functional.linear(rows, weight)

    seconds = median(timed(run, device) for _ in range(10))
    return float(sum(2 * num_rows * weight.numel() for weight in weights) / seconds)


def timed(run: Callable[[], None], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def measure(model: RewardModel, name: str, scale: int, flops: float) -> Result:
    in_flight = IN_FLIGHT[name]
    vocab_size = model.checkpoint.vocab_size
    seconds, padded, computed, difference, num_tokens = [], [], [], 0.0, []
    for repeat in range(1 + (NUM_REPEATS if model.device.type == "cuda" else 1)):  # the first is not counted
        lists = workloads(np.random.default_rng(repeat), vocab_size, scale)[name]
        took, scores, num_computed = asyncio.run(serve(model, lists, in_flight))
        padded_took, padded_scores = score_padded(model, lists, in_flight)
        if repeat:
            seconds.append(took)
            padded.append(padded_took)
            computed.append(num_computed)
            num_tokens.append(sum(map(len, lists)))
            pairs = zip(scores, padded_scores, strict=True)
            difference = max([difference, *(abs(ours - theirs) for ours, theirs in pairs)])
    took = median(seconds)
    return Result(
        workload=name,
        num_tokens=int(median(num_tokens)),
        num_computed_tokens=int(median(computed)),
        seconds=round(took, 4),
        tokens_per_second=round(median(num_tokens) / took, 1),
        share_of_gemm_rate=round(median(computed) * model.flops_per_token / took / flops, 4),
        padded_seconds=round(median(padded), 4),
        ratio=round(median(padded) / took, 2),
        largest_score_difference=float(f"{difference:.2g}"),
    )


def prepared_model(device: torch.device, found: dict[str, Any]) -> RewardModel:
    """The model, tested, warmed up and with a prefix cache, as after the service's start."""
    is_gpu = device.type == "cuda"
    net = make_net(device, torch.bfloat16, model_type="llama", **(LLAMA_8B if is_gpu else TINY))
    model = make_model(net, device, max_batch_tokens=4096)
    select_plan(model)
    free_bytes = available_bytes(device) if is_gpu else None
    batch_bytes = warm_up([model], None if is_gpu else 4096, free_bytes, peak_bytes if is_gpu else compute_only)
    add_cache(model, int(prefix_cache_bytes(device, None, batch_bytes) * CACHE_SHARE) if is_gpu else 50_000_000)
    parameters = sum(weight.numel() for weight in net.parameters())
    found |= {
        "parameters": parameters,
        "plan": model.plan.name,
        "plan_reason": model.plan.reason,
        "max_batch_tokens": model.max_batch_tokens,
        "largest_batch_gb": round(batch_bytes / 1e9, 2),
        "prefix_cache_gb": round(model.cache.max_bytes / 1e9, 2) if model.cache is not None else 0,
    }
    return model


def compute_only(model: RewardModel, num_tokens: int) -> int:
    """For a CPU, on which the memory of a forward pass cannot be queried."""
    model.compute(Batch.of([TokenSequence.of([1] * min(num_tokens, 512))]))
    return 0


def main(arguments: list[str] | None = None) -> None:
    device = parse_device(__doc__, arguments)
    found, watch = about(device), Watch()
    watch("making the model")
    model = prepared_model(device, found)
    watch(f"{found['plan']}; batches of {model.max_batch_tokens} tokens, {found['largest_batch_gb']} GB")
    flops = gemm_flops(model, model.max_batch_tokens)
    found["gemm_tflops"] = round(flops / 1e12, 3)
    results = []
    for name in IN_FLIGHT:
        watch(name)
        results.append(measure(model, name, 4 if device.type == "cuda" else 1, flops))
    watch("done")
    print(
        f"\n{'workload':9} {'tokens':>8} {'computed':>9} {'seconds':>8} {'tokens/s':>9} {'of GEMM':>8} {'padded s':>9} {'ratio':>6}"
    )
    for row in results:
        print(
            f"{row.workload:9} {row.num_tokens:8} {row.num_computed_tokens:9} {row.seconds:8.2f} {row.tokens_per_second:9.0f}"
            f" {row.share_of_gemm_rate:8.1%} {row.padded_seconds:9.2f} {row.ratio:6.2f}"
        )
    print()
    found |= {"workloads": [asdict(row) for row in results], "graphs": num_graphs(), "seconds": round(watch.seconds, 1)}
    print(json.dumps(found))
