"""The block mask of a tree allows exactly the pairs that the tree allows, and is small whatever the batch."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from app.engine.attention.block_mask import BLOCK
from app.engine.attention.cuda import FlexAttention, bucket_length, num_keys
from app.engine.prefix_tree import PrefixTree, encode_key
from app.engine.row_layout import RowLayout
from tests.engine.trees import dense_mask, layouts

CPU = torch.device("cpu")


def by_block(mask: Tensor) -> Tensor:
    """(rows, keys) as (query blocks, key blocks, pairs)."""
    rows, keys = mask.shape
    return mask.view(rows // BLOCK, BLOCK, keys // BLOCK, BLOCK).transpose(1, 2).flatten(2)


def listed(num_blocks: Tensor, indices: Tensor) -> Tensor:
    """(query blocks, key blocks): whether the block is among those that are listed."""
    chosen = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for row, (count, columns) in enumerate(zip(num_blocks[0, 0], indices[0, 0], strict=True)):
        chosen[row, columns[: int(count)].long()] = True
    return chosen


@settings(deadline=None, max_examples=80)
@given(layout=layouts(), window=st.none() | st.integers(1, 400))
def test_the_mask_is_the_trees_own(layout: RowLayout, window: int | None) -> None:
    num_rows = bucket_length(layout.num_computed_tokens)
    keys = num_keys(num_rows, len(layout.cached))
    mask = FlexAttention(layout, num_rows, flex_attention).mask(window, CPU)
    wanted = dense_mask(layout, num_rows, keys, window)
    rows, columns = torch.arange(num_rows)[:, None], torch.arange(keys)[None]
    assert torch.equal(mask.mask_mod(None, None, rows, columns), wanted)  # type: ignore[arg-type]  # no batch, no head
    pairs = by_block(wanted)
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    full = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    partial = listed(mask.kv_num_blocks, mask.kv_indices)
    assert torch.equal(full, pairs.all(2))
    assert not (full & partial).any()
    assert torch.equal(full | partial, pairs.any(2))
    expected = create_block_mask(mask.mask_mod, None, None, num_rows, keys, device="cpu", BLOCK_SIZE=BLOCK)
    assert torch.equal(mask.to_dense(), expected.to_dense())


def test_a_window_leaves_out_the_blocks_that_no_query_reaches() -> None:
    layout = RowLayout(PrefixTree.of([encode_key(range(64 * BLOCK))]))
    mask = FlexAttention(layout, 64 * BLOCK, flex_attention).mask(2 * BLOCK, CPU)
    assert mask.to_dense().sum(-1).max() == 3


def test_under_a_window_a_block_of_deep_and_shallow_queries_lists_only_what_they_see() -> None:
    """The last block of queries has the end of a long sequence and the beginning of another."""
    layout = RowLayout(PrefixTree.of([encode_key(range(1000)), encode_key([5000] * 24)]))
    mask = FlexAttention(layout, 1024, flex_attention).mask(BLOCK, CPU)
    assert mask.to_dense()[0, 0, -1].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(("num_tokens", "megabytes"), [(32_768, 50), (131_072, 200)])
@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("kind", ["one sequence", "groups", "short sequences"])
def test_a_mask_of_many_rows_is_small(kind: str, window: int | None, num_tokens: int, megabytes: int) -> None:
    rng = np.random.default_rng(0)
    lengths = {"one sequence": (0, num_tokens), "groups": (1000, 125), "short sequences": (0, 8)}
    shared, own = lengths[kind]
    keys = []
    for _ in range(num_tokens // (shared + 8 * own) or 1):
        prefix = rng.integers(0, 1 << 16, shared).tolist()
        keys += [
            encode_key(prefix + rng.integers(0, 1 << 16, own).tolist()) for _ in range(1 if own == num_tokens else 8)
        ]
    layout = RowLayout(PrefixTree.of(keys))
    num_rows = bucket_length(layout.num_computed_tokens)
    assert num_tokens * 0.9 < layout.num_computed_tokens <= num_rows <= num_tokens * 1.25
    tracemalloc.start()
    try:
        mask = FlexAttention(layout, num_rows, flex_attention).mask(window, CPU)
        _, peak = tracemalloc.get_traced_memory()  # numpy's arrays, and what torch takes over from them
    finally:
        tracemalloc.stop()
    assert mask.seq_lengths == (num_rows, num_rows)
    assert peak < megabytes * 1e6


@given(num_rows=st.integers(1, 200_000))
def test_rows_are_padded_to_few_bucket_lengths(num_rows: int) -> None:
    bucket = bucket_length(num_rows)
    assert bucket % BLOCK == 0
    assert bucket >= max(num_rows, 256)
    assert bucket == 256 or bucket <= max(num_rows * 1.25, num_rows + BLOCK)
    assert bucket_length(bucket) == bucket


def test_there_are_four_bucket_lengths_per_doubling() -> None:
    assert len({bucket_length(n) for n in range(1, 32_769)}) == 27
