"""Counts which tokens a packed model's attention attends to, in the model's own dtype.

In a long text a wrong mask hardly changes the hidden states: one key too many among 400 disappears in bfloat16 rounding. So
this test makes attention count. All queries are 0, so a query weighs all its visible keys equally, and value j of a key is 1
if the key's random code is j, else 0. The result times the number of visible keys is the number of visible keys with each
code, up to rounding, and one key too many or too few changes a count by 1.
"""

import numpy as np
import torch
from torch import Tensor

from app.engine.attention.backend import AttentionBackend, LayerShape
from app.engine.prefix_tree import IntArray
from app.engine.row_layout import RowLayout

MAX_ERROR = 0.5  # of a count
ROUNDING = 2**-7
"""Relative error allowed for a count, four times the rounding error of bfloat16: in a long path, many keys share a code."""


def mask_fault(layers: list[LayerShape], layout: RowLayout, backend: AttentionBackend, row_multiple: int) -> str | None:
    """A description of the error if some query in such layers attends to wrong keys; None if all attend to the right ones."""
    num_rows = backend.num_rows(layout.num_computed_tokens, row_multiple)
    num_keys = backend.num_keys(num_rows, len(layout.cached))
    attention = backend.prepare(layout, num_rows)
    for layer in dict.fromkeys(layers):
        codes = np.random.default_rng(0).integers(0, layer.value_dim, (layer.num_key_value_heads, num_keys))
        query = torch.zeros(1, layer.num_heads, num_rows, layer.head_dim)
        key = torch.zeros(1, layer.num_key_value_heads, num_keys, layer.head_dim)
        value = torch.nn.functional.one_hot(torch.from_numpy(codes), layer.value_dim)[None]
        with torch.inference_mode():  # as in a forward pass, so that both use the same compiled code
            query, key, value = (each.to(layer.device, layer.dtype) for each in (query, key, value))
            attended = attention.attend(query, key, value, layer.options)[0].float().cpu()  # (rows, heads, value_dim)
        if (off := worst_count(attended, codes, layout, num_rows, layer)) > 1:
            window = layer.options.window
            limit = f" with a sliding window of {window} tokens" if window is not None else ""
            return (
                f"attention{limit} in {layer.dtype} attends to wrong tokens (a count is off by {off * MAX_ERROR:.2g})"
            )
    return None


def worst_count(attended: Tensor, codes: IntArray, layout: RowLayout, num_rows: int, layer: LayerShape) -> float:
    """The largest error of a count, divided by what rounding can explain; infinite if a result is not finite."""
    groups = layer.num_heads // layer.num_key_value_heads
    window = layer.options.window
    is_computed = np.isin(np.arange(layout.tree.num_tokens), layout.computed)
    worst = 0.0
    for path in layout.tree.paths:
        on_path = torch.from_numpy(codes[:, layout.key_rows(path, num_rows)])
        upto = torch.nn.functional.one_hot(on_path, layer.value_dim).cumsum(1)  # (heads, length, value_dim)
        counts = upto.clone()
        if window is not None and window < len(path):
            counts[:, window:] -= upto[:, :-window]
        positions = np.flatnonzero(is_computed[path])
        expected = counts[:, positions].repeat_interleave(groups, 0).transpose(0, 1)  # (positions, heads, value_dim)
        num_visible = np.minimum(positions + 1, window or len(path))
        rows = torch.from_numpy(layout.packed_rows(path[positions]))
        got = attended[rows] * torch.from_numpy(num_visible)[:, None, None]
        errors = (got - expected).abs() / (expected * ROUNDING).clamp_min(MAX_ERROR)
        worst = max(worst, float(errors.nan_to_num(nan=torch.inf).max()))
    return worst
