"""Random trees, laid out as a forward computes them, and their masks by brute force."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from app.engine.prefix_tree import PrefixTree
from app.engine.row_layout import RowLayout
from tests.engine.loaded import forests


@st.composite
def layouts(draw: st.DrawFn, max_sequences: int = 12, max_length: int = 300) -> RowLayout:
    """A tree of which nothing is cached, or of some sequences a prefix of any length."""
    sequences = draw(forests(max_sequences, max_length))
    tree = PrefixTree.of([sequence.key for sequence in sequences])
    is_cached = np.zeros(tree.num_tokens, np.bool_)
    if draw(st.booleans()):
        for path in tree.paths:
            is_cached[path[: draw(st.integers(0, len(path) - 1))]] = True
    return RowLayout.of(tree, is_cached, [path[-1:] for path in tree.paths])


def dense_mask(layout: RowLayout, num_rows: int, num_keys: int, window: int | None) -> Tensor:
    """(rows, keys): whether a query attends to a key, from the paths of the sequences; a padding query sees itself."""
    seen = np.zeros((num_rows, num_keys), np.bool_)
    is_computed = np.ones(layout.tree.num_tokens, np.bool_) if layout.is_computed is None else layout.is_computed
    for path in layout.tree.paths:
        key_rows = layout.key_rows(path, num_rows)
        for position in np.flatnonzero(is_computed[path]):
            first = 0 if window is None else max(position - window + 1, 0)
            seen[key_rows[position], key_rows[first : position + 1]] = True
    padding = np.arange(layout.num_computed_tokens, num_rows)
    seen[padding, padding] = True
    return torch.from_numpy(seen)
