"""The interface of an attention backend: it prepares a batch's tree once, then computes attention over it in each layer."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from app.engine.row_layout import RowLayout


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """The options of one layer's attention, which the model passes with every call."""

    scaling: float | None = None
    """The factor of the attention logits (query times key); None: 1 / sqrt(head_dim)."""
    window: int | None = None
    """The sliding window in tokens: a query attends to its own token and the `window - 1` before it."""
    softcap: float | None = None
    """Attention logits x become softcap * tanh(x / softcap)."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The shapes, dtype, device and options with which a layer calls the attention function."""

    num_heads: int
    num_key_value_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    options: LayerOptions

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor, options: LayerOptions) -> "LayerShape":
        """From tensors of shape (1, heads, rows, dim)."""
        heads, key_value_heads = query.shape[1], key.shape[1]
        return cls(heads, key_value_heads, key.shape[3], value.shape[3], key.dtype, key.device, options)

    @property
    def bytes_per_token(self) -> int:
        """Size of one token's key and value."""
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
        """Returns (1, rows, heads, value_dim). Fewer key heads than query heads means grouped-query attention.

        Padding rows contain arbitrary finite numbers.
        """

    def upload(self, device: torch.device, windows: Iterable[int | None]) -> None:
        """Copies what layers with these sliding windows need to the device; otherwise the first such layer copies it."""


class AttentionBackend(Protocol):
    """Prepares the attention of each batch. One instance serves every batch of a device."""

    def num_rows(self, num_tokens: int, row_multiple: int) -> int:
        """How many rows a batch of `num_tokens` is padded to, a multiple of `row_multiple`."""

    def num_keys(self, num_rows: int, num_cached: int) -> int:
        """How many keys a forward pass has: those of its rows, then the cached ones, then padding."""

    def prepare(self, layout: RowLayout, num_rows: int) -> TreeAttention:
        """The attention of the computed tokens over the tree, in a packed row of length `num_rows`."""
