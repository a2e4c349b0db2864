"""flex_attention over the packed row: CUDA's backend. The tree becomes the block mask.

Each shape may cost a compilation, so we use few shapes: rows are padded to bucket lengths, keys to whole blocks, and one
graph serves many lengths, windows and batches. A model whose layers differ in heads or soft-cap needs one graph for each.
Uncompiled flex_attention would compute dense scores of all pairs: 137 GB in float32 for 32 heads and 32,768 rows. That
never happens here: beyond the limit of graphs, the batch fails with an error that names the limit.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from app.engine.attention.backend import LayerOptions
from app.engine.attention.block_mask import BLOCK, Int32Array, TreeIntervals
from app.engine.attention.cpu import padded_length
from app.engine.devices import upload
from app.engine.row_layout import RowLayout

MIN_ROWS = 2 * BLOCK
"""For fewer than 128 queries flex_attention uses another kernel, which would need more graphs."""
STEPS_PER_DOUBLING = 4
MAX_GRAPHS = 64
"""Compiled graphs per process. A model needs two to four; reloads and soft-caps need more."""
NO_WINDOW = 2**31 - 1


def bucket_length(num_rows: int) -> int:
    """The bucket for a batch of `num_rows` rows: a multiple of 128, at least 256, at most a quarter longer than `num_rows`.

    256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, ...: four per doubling.
    """
    if num_rows <= MIN_ROWS:
        return MIN_ROWS
    below = 1 << ((num_rows - 1).bit_length() - 1)  # the largest power of two below num_rows
    return padded_length(num_rows, max(below // STEPS_PER_DOUBLING, BLOCK))


def num_keys(num_rows: int, num_cached: int) -> int:
    """How many keys a forward pass has, with the cached ones padded to whole blocks."""
    return num_rows + padded_length(num_cached, BLOCK)


class FlexAttention:
    """A `TreeAttention` with one mask per sliding window and device of the model's layers."""

    def __init__(self, layout: RowLayout, num_rows: int, attend: Callable[..., Tensor]) -> None:
        self._intervals = TreeIntervals.of(layout, num_rows, num_keys(num_rows, len(layout.cached)))
        self._attend = attend
        self._masks: dict[tuple[int | None, torch.device], BlockMask] = {}
        self._constants: dict[tuple[np.float32 | np.int32, torch.device], Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: LayerOptions) -> Tensor:
        out = self._attend(
            query,
            key,
            value,
            score_mod=self._softcap(options.softcap, query.device),
            block_mask=self.mask(options.window, query.device),
            scale=options.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.transpose(1, 2).contiguous()

    def _softcap(self, softcap: float | None, device: torch.device) -> Callable[..., Tensor] | None:
        if softcap is None:
            return None
        limit = self._constant(np.float32(softcap), device)

        def cap(score: Tensor, _batch: Tensor, _head: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
            return torch.tanh(score / limit) * limit

        return cap

    def _constant(self, value: np.float32 | np.int32, device: torch.device) -> Tensor:
        """A number as a tensor, uploaded once. A Python number would be compiled into the graph; a tensor is an input."""
        if (value, device) not in self._constants:
            self._constants[value, device] = upload(np.array(value), device)
        return self._constants[value, device]

    def upload(self, device: torch.device, windows: Iterable[int | None]) -> None:
        for window in windows:
            self.mask(window, device)

    def mask(self, window: int | None, device: torch.device) -> BlockMask:
        """The tree's mask for a sliding window on a layer's device; built once."""
        if (window, device) not in self._masks:
            self._masks[window, device] = self._new_mask(window, device)
        return self._masks[window, device]

    def _new_mask(self, window: int | None, device: torch.device) -> BlockMask:
        intervals = self._intervals
        blocks = intervals.blocks(window)
        rows, ends, depths = (upload(each, device) for each in (intervals.row, intervals.end, intervals.depth))
        limit = self._constant(np.int32(NO_WINDOW if window is None else window), device)

        def on_path(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (rows[k] <= rows[q]) & (rows[q] < ends[k]) & (depths[q] - depths[k] < limit)

        def listed(values: Int32Array) -> Tensor:
            return upload(values, device)[None, None]  # one batch; the same for all heads

        return BlockMask.from_kv_blocks(
            listed(blocks.num_partial),
            listed(blocks.partial_indices),
            listed(blocks.num_full),
            listed(blocks.full_indices),
            BLOCK_SIZE=BLOCK,
            mask_mod=on_path,
            seq_lengths=(intervals.num_rows, intervals.num_keys),
            compute_q_blocks=False,  # only gradients need them
        )


class FlexBackend:
    """The `AttentionBackend` that calls flex_attention. Without compilation it computes dense scores, for tests only."""

    def __init__(self, *, compiled: bool = True) -> None:
        self._compiled = compiled

    def num_rows(self, num_tokens: int, row_multiple: int) -> int:  # noqa: ARG002 - buckets have multiples of their own
        return bucket_length(num_tokens)

    def num_keys(self, num_rows: int, num_cached: int) -> int:
        return num_keys(num_rows, num_cached)

    def prepare(self, layout: RowLayout, num_rows: int) -> FlexAttention:
        return FlexAttention(layout, num_rows, compiled_flex() if self._compiled else flex_attention)


@lru_cache(maxsize=1)
def compiled_flex() -> Any:
    """flex_attention compiled as one graph. A call raises if it cannot be compiled or the limit of graphs is reached."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)  # noqa: SLF001 - no public name in every release
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def num_graphs() -> int:
    """How many graphs this process has compiled."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])  # noqa: SLF001 - nothing public counts them
