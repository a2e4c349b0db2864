"""The attention function that transformers calls in every layer of a packed model, and the packed row that it works on."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from app.engine.attention.backend import AttentionBackend, LayerOptions, LayerShape
from app.engine.attention.last_layer import KeysCapturedError, LastLayerRows
from app.engine.devices import upload
from app.engine.prefix_tree import IntArray
from app.engine.row_layout import RowLayout, zero_padded

if TYPE_CHECKING:
    from app.engine.attention.pool import CachedKeys

IMPLEMENTATION = "reward_tree"
IGNORED_ARGUMENTS = frozenset(
    {"position_ids", "is_causal", "use_cache", "output_attentions", "output_hidden_states", "dropout"}
)
"""Arguments that models pass and that have no effect here: the tree determines causality and positions."""


class PackedRow:
    """The tokens of a batch's tree that are computed: the model's inputs on a device, and the attention over the tree."""

    def __init__(
        self, layout: RowLayout, device: torch.device, backend: AttentionBackend, *, row_multiple: int = 64
    ) -> None:
        self.layout = layout
        self.device = device
        self.num_rows = backend.num_rows(layout.num_computed_tokens, row_multiple)
        self.num_keys = backend.num_keys(self.num_rows, len(layout.cached))
        self.input_ids = self._padded(layout.token_ids)  # (1, num_rows)
        self.position_ids = self._padded(layout.depth)  # (1, num_rows)
        self.attention = backend.prepare(layout, self.num_rows)
        self.cached_keys: CachedKeys | None = None
        self.layers: list[LayerShape] = []
        """The shapes of the layers that have called attention so far, in order."""

    def _padded(self, values: IntArray) -> Tensor:
        return upload(zero_padded(values, self.num_rows), self.device)[None]


def tree_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, rows, head_dim)
    key: Tensor,  # (1, key_value_heads, rows, head_dim)
    value: Tensor,  # (1, key_value_heads, rows, value_dim)
    attention_mask: Tensor | None,
    *,
    packed_row: PackedRow,
    last_rows: LastLayerRows | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function for `AttentionInterface`: (1, rows, heads, value_dim), and None for the weights.

    Raises TypeError for an argument that it does not know, so that none is ignored silently.
    """
    unknown = {name for name, given in others.items() if given is not None} - IGNORED_ARGUMENTS
    if unknown or attention_mask is not None:
        raise TypeError(
            f"{type(module).__name__} passes {sorted(unknown) or 'a mask'} to attention, which is unknown here"
        )
    options = LayerOptions(scaling, sliding_window, softcap)
    if last_rows is not None and last_rows.keys_and_values is not None:  # the second call
        return last_rows.attention.attend(query, *last_rows.keys_and_values, options), None
    packed_row.layers.append(LayerShape.of(query, key, value, options))
    if packed_row.cached_keys is not None:
        key, value = packed_row.cached_keys.extend(key, value)
    if last_rows is not None:
        last_rows.keys_and_values = key, value
        raise KeysCapturedError
    return packed_row.attention.attend(query, key, value, options), None


AttentionInterface.register(IMPLEMENTATION, tree_attention)
