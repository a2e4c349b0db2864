"""Tests that cached prefixes do not change a model's states before the model gets a prefix cache."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from app.engine.attention.pool import KeyValueCache
from app.engine.batch import Batch
from app.engine.devices import is_out_of_memory
from app.engine.prefix_cache import PAGE_TOKENS, least_prefix_tokens
from app.engine.reward_model import RewardModel
from app.engine.row_layout import RowLayout
from app.engine.self_test import TOLERANCE, fault_of_mask, forked_tree, scorable, worst_error
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError

logger = logging.getLogger(__name__)


def add_cache(
    model: RewardModel,
    num_bytes: int,
    *,
    test_states: Tensor | None = None,
    min_prefix_tokens: int | None = None,
    is_required: bool = False,
) -> None:
    """Gives a packed model a prefix cache of at most `num_bytes`, unless cached prefixes would change its states.

    Its memory is allocated now. `min_prefix_tokens` (default: from the model's FLOPs per token) is the shortest prefix that is
    cached. `test_states` are those that `select_plan` returned; they are computed if not given. `model.cache_reason` tells why
    a model has no cache. Raises ModelRefusedError if there is not enough memory and the cache `is_required`.
    """
    if model.plan.path != "packed":
        model.cache_reason = f"the {model.plan.path} path computes whole sequences"
        return
    sequences = scorable(model, forked_tree(model))
    if not sequences:
        model.cache_reason = "no test sequence has the positions that its head reads"
        return
    batch = Batch.of(sequences)
    expected = model.compute(batch).states if test_states is None else read_states(model, sequences, test_states)
    cache = KeyValueCache(num_bytes, sum(layer.bytes_per_token for layer in model.attended_layers))
    if not cache.max_bytes:
        model.cache_reason = f"{num_bytes} bytes hold no {PAGE_TOKENS} tokens"
        return
    model.cache = cache
    try:
        model.cache_reason = fault_of_cache(model, cache, batch, expected)
    except Exception as error:
        model.cache = None
        if not is_out_of_memory(error):
            raise
        model.cache_reason = (
            f"{num_bytes / 1e6:.0f} MB for the prefix cache of the {model.name} model cannot be allocated on "
            f"{model.device}; set REWARD_PREFIX_CACHE_MB lower, or to 0 for none"
        )
        if is_required:
            raise ModelRefusedError(model.cache_reason) from error
        logger.warning("%s", model.cache_reason)
    if model.cache_reason is not None:
        model.cache = None
    # After the test, whose sequences are short.
    cache.prefixes.min_prefix_tokens = min_prefix_tokens or least_prefix_tokens(model.flops_per_token)


def read_states(model: RewardModel, sequences: Sequence[TokenSequence], states: Tensor) -> Tensor:
    """Selects the states that the head reads from those of all tokens of the sequences."""
    starts = np.cumsum([0, *(sequence.num_tokens for sequence in sequences)])
    rows = [start + model.head.position.of(each) for start, each in zip(starts, sequences, strict=False)]
    return states[torch.from_numpy(np.concatenate(rows)).to(states.device)]


def fault_of_cache(model: RewardModel, cache: KeyValueCache, batch: Batch, expected: Tensor) -> str | None:
    """Why the model cannot use the cache; None if it can. The cache must be empty, and is emptied again."""
    for part in (batch.part([0, min(5, len(batch) - 1)]), batch):  # the second batch finds what the first one left
        computed = model.compute(part)
    cache.prefixes.clear()
    off = worst_error(computed.states, expected)
    if not any(computed.num_cached_tokens) or not off <= (0 if model.plan.batch_invariant else TOLERANCE[model.dtype]):
        return f"with cached prefixes states are off by {off:.2g}"
    is_cached = np.zeros(batch.tree.num_tokens, np.bool_)
    is_cached[batch.tree.paths[0][:-1]] = True  # the trunk, on which most other paths lie
    layout = RowLayout.of(batch.tree, is_cached, [path[-1:] for path in batch.tree.paths])
    fault = fault_of_mask(model, layout)
    return None if fault is None else f"with cached prefixes {fault}"
