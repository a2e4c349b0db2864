"""Which tokens of a batch's tree a forward pass computes, and where all tokens' keys are. Knows no torch.

A *tree row* is a token's index in the tree. A *packed row* is its index in the forward pass's inputs, if it is computed. A
*key row* is the index of its key in attention: first come the packed rows with their padding, then the cached tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from app.engine.prefix_tree import IntArray, PrefixTree


@dataclass(frozen=True)
class RowLayout:
    """The rows of one forward pass. `is_computed[i]` tells whether tree row i is computed; None: all are."""

    tree: PrefixTree
    is_computed: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, tree: PrefixTree, is_cached: NDArray[np.bool_], wanted: Sequence[IntArray]) -> "RowLayout":
        """The layout that computes the tokens that are not cached, and the `wanted` tree rows, whose states the head reads."""
        is_computed = ~is_cached
        for rows in wanted:
            is_computed[rows] = True
        return cls(tree, None if is_computed.all() else is_computed)

    @cached_property
    def computed(self) -> IntArray:
        """(computed,) the tree rows that are computed, ascending: packed row j computes tree row computed[j]."""
        return np.arange(self.tree.num_tokens) if self.is_computed is None else np.flatnonzero(self.is_computed)

    @cached_property
    def cached(self) -> IntArray:
        """(cached,) the tree rows that are not computed, ascending."""
        return np.empty(0, np.int64) if self.is_computed is None else np.flatnonzero(~self.is_computed)

    @property
    def num_computed_tokens(self) -> int:
        return len(self.computed)

    @property
    def token_ids(self) -> IntArray:
        """(computed,)"""
        return self.tree.token_ids if self.is_computed is None else self.tree.token_ids[self.computed]

    @property
    def depth(self) -> IntArray:
        """(computed,)"""
        return self.tree.depth if self.is_computed is None else self.tree.depth[self.computed]

    def packed_rows(self, tree_rows: IntArray) -> IntArray:
        """The packed rows of tree rows, all of which must be computed."""
        return tree_rows if self.is_computed is None else self._packed_row[tree_rows]

    def key_rows(self, tree_rows: IntArray, num_rows: int) -> IntArray:
        """The key rows of tree rows, in a forward pass of `num_rows` rows, padding included."""
        if self.is_computed is None:
            return tree_rows
        rows = self._packed_row[tree_rows]
        return np.where(rows >= 0, rows, num_rows - 1 - rows)

    @cached_property
    def _packed_row(self) -> IntArray:
        """(tree rows,) the packed row of a computed token; -1, -2, ... for the cached tokens in order."""
        rows = np.empty(self.tree.num_tokens, np.int64)
        rows[self.computed] = np.arange(len(self.computed))
        rows[self.cached] = -1 - np.arange(len(self.cached))
        return rows

    def num_computed_by(self) -> list[int]:
        """Per sequence, the number of its computed tokens; a shared token counts for the first sequence that has it."""
        is_left = np.ones(self.tree.num_tokens, np.bool_) if self.is_computed is None else self.is_computed.copy()
        counts = []
        for path in self.tree.paths:
            counts.append(int(np.count_nonzero(is_left[path])))
            is_left[path] = False
        return counts


def zero_padded(values: IntArray, length: int) -> IntArray:
    """(length,) the values and then zeros. `numpy.pad` does the same and takes ten times as long for a short array."""
    padded = np.zeros(length, np.int64)
    padded[: len(values)] = values
    return padded
