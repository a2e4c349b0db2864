"""Does packed attention on this GPU give transformers' own scores? How often is it compiled, and what memory does it take?

`make gpu-test`, or `python -m benchmarks.gpu.equality`. Exits with 1 if a check fails. The last line is JSON.
"""

import json
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from app.engine.attention.block_mask import BLOCK
from app.engine.attention.cuda import FlexBackend, bucket_length, num_graphs
from app.engine.batch import Batch
from app.engine.cache_test import add_cache
from app.engine.prefix_tree import PrefixTree, encode_key
from app.engine.reward_model import RewardModel
from app.engine.row_layout import RowLayout
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from app.engine.warm_up import peak_bytes
from benchmarks.gpu.machine import Watch, about, parse_device
from benchmarks.gpu.models import make_model, make_net, widen

VOCAB_SIZE = 4096
WINDOW = 300
LARGE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 131_072,
}
SMALL = {**LARGE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 64},
    "mistral": {"sliding_window": WINDOW},
}
FLOAT32_TOLERANCE = 1e-4
"""Tolerance of a score, relative to max(1, |score|). On the CPU it is 1e-5; a GPU sums in a different order in every batch."""
BFLOAT16_RATIO, BFLOAT16_FLOOR = 2.0, 0.02
"""A bfloat16 score's maximum distance from the float32 score: this factor times that of transformers' own bfloat16 score, or this
value."""
NUM_BATCHES = 200
NUM_SMALL_BATCHES = 40  # on the CPU
MASK_LIMITS = {32_768: 50e6, 131_072: 200e6}


@dataclass(slots=True)
class Report:
    """The results; `failures` is empty if all checks passed."""

    found: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def check(self, ok: bool, text: str) -> None:
        if not ok:
            self.failures.append(text)


def random_batch(rng: np.random.Generator, prompts: list[list[int]], max_sequences: int) -> Batch:
    """Sequences, some of which share a prompt with others of this batch or of an earlier one."""
    lists = []
    for _ in range(int(rng.integers(2, max_sequences))):
        if not prompts or rng.random() < 0.3:
            prompts.append(random_ids(rng, int(rng.integers(20, 600))))
        lists.append(prompts[int(rng.integers(len(prompts)))] + random_ids(rng, int(rng.integers(1, 200))))
    return Batch.of([TokenSequence.of(ids) for ids in lists])


def random_ids(rng: np.random.Generator, n: int) -> list[int]:
    return [int(i) for i in rng.integers(1, VOCAB_SIZE, n)]


def tested_model(net: Any, device: torch.device, report: Report, what: str) -> RewardModel:
    """The model with the execution plan of the service, which must be flex_attention with a prefix cache."""
    model = make_model(net, device, max_batch_tokens=32_768)
    select_plan(model)
    report.check(model.plan.name == "packed with flex_attention", f"{what} takes another path: {model.plan.reason}")
    if model.plan.path == "packed":
        add_cache(model, 200_000_000)
        report.check(model.cache is not None, f"{what} has no prefix cache: {model.cache_reason}")
    return model


def check_scores(family: str, device: torch.device, config: dict[str, Any], num_batches: int, report: Report) -> None:
    """In float32 against transformers, in bfloat16 against transformers' own error in bfloat16; the second batch is partly cached."""
    config = {"model_type": family, **config, **FAMILIES[family]}
    exact_net, half_net = widen(make_net(device, torch.float32, **config)), make_net(device, torch.bfloat16, **config)
    half_net.load_state_dict(exact_net.state_dict())
    exact = tested_model(exact_net, device, report, f"{family} in float32")
    half = tested_model(half_net, device, report, f"{family} in bfloat16")
    rng = np.random.default_rng(0)
    prompts: list[list[int]] = []
    errors: dict[str, list[float]] = {"float32": [], "bfloat16": [], "transformers_bfloat16": []}
    num_cached = 0
    for _ in range(num_batches):
        batch = random_batch(rng, prompts, 12)
        expected = [exact.reference_score(sequence) for sequence in batch.sequences]
        scored = exact.score(batch)
        num_cached += sum(each.num_cached_tokens for each in scored)
        halves = [each.score for each in half.score(batch)]
        theirs = [half.reference_score(sequence) for sequence in batch.sequences]
        for name, scores in (
            ("float32", [each.score for each in scored]),
            ("bfloat16", halves),
            ("transformers_bfloat16", theirs),
        ):
            pairs = zip(scores, expected, strict=True)
            errors[name] += [abs(score - wanted) / max(1, abs(wanted)) for score, wanted in pairs]
    worst = {name: max(values) for name, values in errors.items()}
    report.found.setdefault("largest_score_error", {})[family] = {name: float(f"{e:.2g}") for name, e in worst.items()}
    report.check(num_cached > 0, f"{family}: nothing was found in the prefix cache")
    report.check(worst["float32"] <= FLOAT32_TOLERANCE, f"{family} in float32 is off by {worst['float32']:.2g}")
    allowed = max(BFLOAT16_RATIO * worst["transformers_bfloat16"], BFLOAT16_FLOOR)
    report.check(worst["bfloat16"] <= allowed, f"{family} in bfloat16 is off by {worst['bfloat16']:.2g}")


def check_compilations(device: torch.device, config: dict[str, Any], num_batches: int, report: Report) -> None:
    """Random batches of two models, one with sliding windows, compile no more graphs than there are padded lengths."""
    torch.compiler.reset()
    before = num_graphs()
    models = [
        tested_model(
            make_net(device, torch.bfloat16, model_type=family, **config, **FAMILIES[family]), device, report, family
        )
        for family in ("llama", "mistral")
    ]
    rng = np.random.default_rng(1)
    prompts: list[list[int]] = []
    longest = 0
    for _ in range(num_batches // len(models)):
        batch = random_batch(rng, prompts, 16)
        longest = max(longest, batch.tree.num_tokens)
        for model in models:
            model.score(batch)
    graphs, buckets = num_graphs() - before, len({bucket_length(n) for n in range(1, longest + 1)})
    report.found["compilations"] = {"graphs": graphs, "batches": num_batches, "buckets": buckets}
    report.check(0 < graphs <= buckets, f"{graphs} graphs were compiled for {buckets} bucket lengths")


def check_memory(device: torch.device, config: dict[str, Any], report: Report) -> None:
    """Memory of the mask on the device, and of a forward pass of the largest batch."""
    found: dict[str, float] = {}
    for num_tokens, limit in MASK_LIMITS.items():
        tree = PrefixTree.of([encode_key(range(num_tokens))])
        attention = FlexBackend().prepare(RowLayout(tree), bucket_length(num_tokens))
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        attention.upload(device, [None])
        torch.cuda.synchronize(device)
        num_bytes = torch.cuda.max_memory_allocated(device) - before
        found[f"mask_mb_{num_tokens}"] = round(num_bytes / 1e6, 1)
        report.check(num_bytes < limit, f"the mask of {num_tokens} tokens takes {num_bytes / 1e6:.0f} MB")
    net = make_net(device, torch.bfloat16, model_type="llama", **config)
    model = tested_model(net, device, report, "llama")
    for num_tokens in MASK_LIMITS:
        found[f"batch_mb_{num_tokens}"] = round(peak_bytes(model, num_tokens) / 1e6, 1)
    report.found["memory"] = found


def main(arguments: list[str] | None = None) -> None:
    device = parse_device(__doc__, arguments)
    is_gpu = device.type == "cuda"
    config = LARGE if is_gpu else SMALL
    report, watch = Report(about(device)), Watch()
    for family in FAMILIES if is_gpu else ("llama", "mistral"):
        watch(f"{family}: scores against transformers")
        check_scores(family, device, config, 6 if is_gpu else 2, report)
    num_batches = NUM_BATCHES if is_gpu else NUM_SMALL_BATCHES
    watch(f"compilations over {num_batches} batches")
    check_compilations(device, config, num_batches, report)
    if is_gpu:
        watch("memory of the mask and of the largest batch")
        check_memory(device, config, report)
    watch("done")
    for failure in report.failures:
        print(f"FAILED: {failure}")
    report.found |= {"block": BLOCK, "seconds": round(watch.seconds, 1), "failures": report.failures}
    print(json.dumps(report.found))
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
