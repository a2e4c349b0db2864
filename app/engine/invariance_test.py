"""Tests batch invariance, as a part of the self-test: whether a score has the same bits alone and in any batch."""

import numpy as np
import torch
from torch import Tensor

from app.engine.attention.backend import LayerShape
from app.engine.attention.cpu import BLOCK, STEP, BlockAttention, Queries
from app.engine.batch import Batch
from app.engine.first_layers import first_layers, states_for_bits
from app.engine.reward_model import RewardModel
from app.engine.sequence import TokenSequence

ROW_MULTIPLES = (16, 64)
"""Rows are padded to a multiple of 16 (a vector's length) if matrix products then sum every row in the same order, else of 64,
because libraries use other kernels for few rows."""


def first_row_multiple(model: RewardModel) -> int:
    """The multiple to test the model's states with: the one that `set_row_multiple` tries first."""
    return ROW_MULTIPLES[0] if may_be_batch_invariant(model) else ROW_MULTIPLES[-1]


def set_row_multiple(model: RewardModel, sequences: list[TokenSequence]) -> None:
    """Pads rows to the smallest multiple that makes scores batch-invariant, else to the largest."""
    for model.row_multiple in ROW_MULTIPLES:
        model.plan.batch_invariant = is_batch_invariant(model, sequences)
        if model.plan.batch_invariant:
            return


def may_be_batch_invariant(model: RewardModel) -> bool:
    """Batch invariance is only promised for float32 on the CPU's packed path."""
    return model.plan.path == "packed" and model.device.type == "cpu" and model.dtype == torch.float32


def is_batch_invariant(model: RewardModel, sequences: list[TokenSequence]) -> bool:
    """Whether states are bitwise equal in three cases: alone on one thread, in the whole batch and in a part of it on all
    threads."""
    if not may_be_batch_invariant(model):
        return False
    num_layers = first_layers(model)
    with model.threads.fixed_at(torch.get_num_threads()):
        together = states_of(model, sequences, num_layers)
        reversed_part = states_of(model, sequences[4::-1], num_layers)[::-1]
    with model.threads.fixed_at(1):
        alone = [state for sequence in sequences for state in states_of(model, [sequence], num_layers)]
    is_same = all(map(torch.equal, together, alone)) and all(map(torch.equal, reversed_part, alone[:5]))
    return is_same and all(is_same_in_parts(model, layer) for layer in dict.fromkeys(model.attended_layers))


def is_same_in_parts(model: RewardModel, layer: LayerShape) -> bool:
    """Whether a layer's attention gives the same bits for any part of a block of queries, on one thread and on all."""
    generator, path = torch.Generator().manual_seed(0), np.arange(2 * BLOCK)
    key_heads = layer.num_key_value_heads
    query, key, value = (
        torch.randn(1, heads, len(path), dim, generator=generator, dtype=layer.dtype)
        for heads, dim in (
            (layer.num_heads, layer.head_dim),
            (key_heads, layer.head_dim),
            (key_heads, layer.value_dim),
        )
    )

    def attended(first: int, stop: int, num_threads: int) -> Tensor:
        wanted = Queries(path, path[first:stop], path[first:stop])
        threads = model.threads
        with torch.inference_mode(), threads.fixed_at(num_threads), threads.set_for_forward(is_small=False):
            return BlockAttention(lambda: [wanted]).attend(query, key, value, layer.options)[0, first:stop]

    whole = attended(BLOCK, len(path), 1)
    return all(
        torch.equal(attended(first, stop, num_threads), whole[first - BLOCK : stop - BLOCK])
        for first in range(BLOCK, len(path), STEP)
        for stop in range(first + STEP, len(path) + 1, STEP)
        for num_threads in (1, torch.get_num_threads())
    )


def states_of(model: RewardModel, sequences: list[TokenSequence], num_layers: int) -> list[Tensor]:
    """The states of each sequence, (tokens, hidden), from `states_for_bits`."""
    states = states_for_bits(model, Batch.of(sequences, [True] * len(sequences)), num_layers)
    return list(torch.split(states, [sequence.num_tokens for sequence in sequences]))
