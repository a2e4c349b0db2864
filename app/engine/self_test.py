"""What a model does at start before it may score: every path is held against the oracle, and the first that agrees is taken.

The test is a small forked tree of random tokens: shared prefixes that end inside and on block bounds, a sequence that is
a prefix of another, two that are equal. What a short test cannot see (an encoding that depends on the longest position
of the row) is on a list.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from app.engine.refusals import one_line
from app.engine.reward_model import SMALL_FORWARD_FLOPS, Facts, RewardModel
from app.engine.sequence import Sequence
from app.errors import ModelRefusedError

ROW_LENGTH_ROPE = frozenset({"dynamic", "longrope"})
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far a path may be from the oracle, relative to max(1, |score|). What is wrong is off by far more than rounding."""


def choose_path(model: RewardModel) -> None:
    """Sets `model.facts` to the fastest path whose scores are the oracle's.

    Raises ModelRefusedError where not even one sequence at a time gives them.
    """
    sequences = forked_tree(model)
    try:
        expected = [model.oracle(sequence) for sequence in sequences]
    except Exception as error:
        raise ModelRefusedError(
            f"{model.checkpoint.source} cannot score a test sequence ({one_line(error)})"
        ) from error
    if not np.isfinite(expected).all():
        raise ModelRefusedError(
            f"{model.checkpoint.source} gives non-finite scores in {model.dtype}; try dtype float32"
        )
    failures = []
    for facts in candidates(model):
        model.facts = facts
        try:
            off = worst_error([scored.score for scored in model.score(sequences)], expected)
        except Exception as error:  # noqa: BLE001 - whatever a foreign model raises, the path is not for it
            failures.append(f"{facts.path}: {one_line(error)}")
            continue
        if off <= TOLERANCE[model.dtype]:
            facts.reason = "; ".join([facts.reason, *failures])
            set_row_multiple(model, sequences)
            return
        failures.append(f"{facts.path}: off by {off:.2g}")
    raise ModelRefusedError(f"{model.checkpoint.source} scores differently on every path ({'; '.join(failures)})")


def candidates(model: RewardModel) -> Iterator[Facts]:
    if not model.is_causal:
        yield Facts("padded", "an encoder: every token sees all others")
    elif ROW_LENGTH_ROPE & set(rope_types(model.net.config.get_text_config())):
        yield Facts("single", "its rotary encoding depends on the length of the row")
        return
    else:
        if model.device.type != "cuda":
            yield Facts("packed", "equals the oracle on a forked tree", skips_last_layer=True)
        yield Facts("packed", "equals the oracle on a forked tree")
        yield Facts("padded", "padded batches equal the oracle")
    yield Facts("single", "one sequence a forward")


def rope_types(config: Any) -> Iterator[str]:
    """The kinds of rotary encoding that a config names, one for all layers or one a kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for each in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:
        if "rope_type" in each:
            yield each["rope_type"]


def forked_tree(model: RewardModel) -> list[Sequence]:
    """Sequences of random ordinary tokens, of the model's longest at most."""
    rng = np.random.default_rng(0)
    special = {*model.tokenization.tokenizer.all_special_ids, model.pad_token_id}
    ordinary = [i for i in range(min(model.checkpoint.vocab_size, 4096)) if i not in special] or [0]

    def some(n: int) -> list[int]:
        return [int(i) for i in rng.choice(ordinary, n)]

    trunk = some(150)
    lists = [trunk, trunk[:70] + some(80), trunk[:64] + some(30), trunk[:40], trunk[:40], some(5), some(1), some(131)]
    longest = model.tokenization.max_length
    return [Sequence.of(token_ids[:longest]) for token_ids in lists]


def worst_error(scores: list[float], expected: list[float]) -> float:
    """max |s - s'| / max(1, |s'|); infinite where a score is not finite."""
    errors = np.abs(np.subtract(scores, expected)) / np.maximum(1, np.abs(expected))
    return float(np.nan_to_num(errors, nan=np.inf).max())


def set_row_multiple(model: RewardModel, sequences: list[Sequence]) -> None:
    """Pads rows to the least multiple that makes scores batch-invariant: 16, vector lengths, where matrix products sum
    every row alike, else 64, beyond the few rows for which libraries have kernels of their own."""
    for model.row_multiple in (16, 64):
        model.facts.batch_invariant = is_batch_invariant(model, sequences)
        if model.facts.batch_invariant:
            return


def is_batch_invariant(model: RewardModel, sequences: list[Sequence]) -> bool:
    """Whether a score is the same to the bit alone on one thread, and in the whole batch and in a part of it on all.

    Not promised elsewhere.
    """
    if model.facts.path != "packed" or model.device.type != "cpu" or model.dtype != torch.float32:
        return False
    try:
        model.small_forward_flops = 0
        together = [scored.score for scored in model.score(sequences)]
        reversed_part = [scored.score for scored in model.score(sequences[4::-1])][::-1]
        model.small_forward_flops = math.inf
        alone = [model.score([sequence])[0].score for sequence in sequences]
    finally:
        model.small_forward_flops = SMALL_FORWARD_FLOPS
    return together == alone and reversed_part == alone[:5]
