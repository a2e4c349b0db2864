"""The masks of the blocks: right at every offset, and small whatever came before."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.engine.attention import cpu
from app.engine.attention.backend import LayerOptions
from app.engine.attention.cpu import (
    ALIGNMENT,
    BLOCK,
    BlockAttention,
    Queries,
    block_length,
    block_mask,
    block_start,
    picked,
    query_blocks,
)

CPU = torch.device("cpu")


def brute_force(offset: int, length: int, window: int | None) -> Tensor:
    rows = []
    for query in range(offset, offset + length):
        seen = [key <= query and (window is None or query - key < window) for key in range(offset + length)]
        rows.append([0.0 if each else -torch.inf for each in seen])
    return torch.tensor(rows)


@settings(deadline=None, max_examples=60)
@given(
    positions=st.lists(st.integers(0, 700), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 300),
)
def test_a_mask_is_right_whatever_was_asked_before(positions: list[int], window: int | None) -> None:
    for position in positions:
        offset = block_start(position)
        length = block_length(offset)
        mask = block_mask(offset, length, window, torch.float32, CPU)
        assert torch.equal(mask, brute_force(offset, length, window))


@pytest.mark.parametrize("window", [None, 4096])
def test_the_masks_of_a_long_text_take_a_few_megabytes(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: dict[tuple[int, int | None, torch.dtype, torch.device], Tensor] = {}
    monkeypatch.setattr(cpu, "_masks", masks)
    for offset in range(BLOCK, 40_000, BLOCK):
        block_mask(offset, BLOCK, window, torch.float32, CPU)
    assert sum(mask.untyped_storage().nbytes() for mask in masks.values()) < 20e6


@settings(deadline=None, max_examples=40)
@given(
    num_tokens=st.integers(1, 300),
    first=st.integers(0, 299),
    num_wanted=st.integers(1, 300),
    options=st.sampled_from([LayerOptions(), LayerOptions(window=70), LayerOptions(softcap=5.0)]),
)
def test_a_query_has_the_same_bits_whichever_others_are_computed(
    num_tokens: int, first: int, num_wanted: int, options: LayerOptions
) -> None:
    first = min(first, num_tokens - 1)
    generator = torch.Generator().manual_seed(num_tokens)
    query, key, value = (torch.randn(1, heads, num_tokens, 16, generator=generator) for heads in (6, 2, 2))

    def attended(positions: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        wanted = [Queries(np.arange(num_tokens), positions, positions)]
        attention = BlockAttention(lambda: wanted)
        return attention.attend(query, key, value, options)[0, positions]

    wanted = np.arange(first, min(first + num_wanted, num_tokens))
    assert torch.equal(attended(wanted), attended(np.arange(num_tokens))[wanted])


@settings(deadline=None, max_examples=40)
@given(
    num_tokens=st.integers(1, 300),
    offset=st.integers(0, 40),
    head_dim=st.sampled_from([4, 5, 16]),
    options=st.sampled_from([LayerOptions(), LayerOptions(window=70), LayerOptions(softcap=5.0)]),
)
def test_consecutive_rows_give_the_same_bits_as_scattered_ones(
    num_tokens: int, offset: int, head_dim: int, options: LayerOptions
) -> None:
    """Consecutive rows are read where they are, others are copied; the rows of 4 or 5 floats begin at odd addresses."""
    generator = torch.Generator().manual_seed(num_tokens)
    query, key, value = (torch.randn(1, heads, num_tokens, head_dim, generator=generator) for heads in (6, 2, 2))

    def attended(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        wanted = [Queries(rows, np.arange(num_tokens), rows)]
        placed = [placed_at(rows, each) for each in (query, key, value)]
        return BlockAttention(lambda: wanted).attend(placed[0], placed[1], placed[2], options)[0, rows]

    scattered = np.random.default_rng(num_tokens).permutation(400)[:num_tokens]
    assert torch.equal(attended(offset + np.arange(num_tokens)), attended(scattered))


def placed_at(rows: np.ndarray[tuple[int], np.dtype[np.int64]], states: Tensor) -> Tensor:
    """(1, heads, 400, dim) with the states at the given rows and zeros elsewhere, in memory row by row as projections are."""
    placed = states.new_zeros(1, 400, states.shape[1], states.shape[3])
    placed[:, rows] = states.transpose(1, 2)
    return placed.transpose(1, 2)


def test_consecutive_rows_are_read_without_a_copy() -> None:
    states = torch.randn(128, 32)
    assert picked(states, slice(64, 128)).data_ptr() == states[64:].data_ptr()
    narrow = torch.randn(128, 5)
    assert picked(narrow, slice(65, 128)).data_ptr() % ALIGNMENT == 0
    assert torch.equal(picked(narrow, slice(65, 128)), narrow[65:])


def test_only_the_wanted_queries_of_a_block_are_computed() -> None:
    wanted = Queries(np.arange(1300), np.arange(1200, 1260), np.arange(60))
    parts = [block.part for block in query_blocks([wanted])]
    assert [(part.position, part.length, part.num_keys) for part in parts] == [(1200, 16, 1216), (1216, 48, 1280)]


def test_the_blocks_of_a_long_text_take_memory_in_proportion_to_it() -> None:
    """The rows of every prefix would be 62 GB for a million tokens, which ended the process."""
    positions = np.arange(1 << 16)
    tracemalloc.start()
    try:
        query_blocks([Queries(positions, positions, positions)])
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
