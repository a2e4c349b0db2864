"""What an attention backend is: it prepares a batch's tree once, and computes attention over it in every layer."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from app.engine.row_layout import RowLayout


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """How a layer attends, as the model says with every call."""

    scaling: float | None = None
    """Of the products of queries and keys; None: 1 / sqrt(head_dim)."""
    window: int | None = None
    """The sliding window: a query sees its own token and the `window - 1` before it."""
    softcap: float | None = None
    """Products x become softcap * tanh(x / softcap)."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer passes to the attention function."""

    num_heads: int
    num_key_value_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    options: LayerOptions

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor, options: LayerOptions) -> "LayerShape":
        """Of (1, heads, rows, dim) each."""
        heads, key_value_heads = query.shape[1], key.shape[1]
        return cls(heads, key_value_heads, key.shape[3], value.shape[3], key.dtype, key.device, options)

    @property
    def bytes_per_token(self) -> int:
        """Of a token's key and value."""
        return self.num_key_value_heads * (self.head_dim + self.value_dim) * self.dtype.itemsize


class TreeAttention(Protocol):
    """Attention over one batch's tree."""

    def attend(
        self,
        query: Tensor,  # (1, heads, rows, head_dim)
        key: Tensor,  # (1, key_value_heads, keys, head_dim)
        value: Tensor,  # (1, key_value_heads, keys, value_dim)
        options: LayerOptions,
    ) -> Tensor:
        """(1, rows, heads, value_dim); heads are grouped by the shapes. Padding rows hold any finite number."""

    def upload(self, device: torch.device, windows: Iterable[int | None]) -> None:
        """Makes ready on a device what layers with these sliding windows will need; else the first such layer does."""


class AttentionBackend(Protocol):
    """Makes the attention of a batch. One instance serves every batch of a device."""

    def num_rows(self, num_tokens: int, row_multiple: int) -> int:
        """The rows that a batch of so many tokens is padded to: a multiple of `row_multiple` at least."""

    def num_keys(self, num_rows: int, num_cached: int) -> int:
        """The keys of a forward: those of its rows, then the cached ones, then any of them again as padding."""

    def prepare(self, layout: RowLayout, num_rows: int) -> TreeAttention:
        """The attention of the computed tokens over the tree, in a row of `num_rows`."""
