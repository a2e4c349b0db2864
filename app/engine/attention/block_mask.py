"""A batch's tree as the block mask of flex_attention, built from the tree's intervals. Knows no torch.

A token's subtree is an interval of tree rows: token q attends to token k exactly if `row[k] <= row[q] < end[k]` and, with a
sliding window of w tokens, `depth[q] - depth[k] < w`. So each key's subtree is an interval of queries. The ends of these
intervals and the depths in them tell which blocks of 128 x 128 contain allowed pairs, and which contain nothing else. The
full matrix of rows x keys is never built: for 131,072 rows it would take 17 GB.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from app.engine.prefix_tree import IntArray
from app.engine.row_layout import RowLayout

BLOCK = 128
"""Queries and keys per block, flex_attention's own default."""
FAR = 2**30
"""More than any depth."""

Int32Array = NDArray[np.int32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class KeyBlocks:
    """For each block of queries, the blocks of keys that it attends to partially or fully.

    `num_*[i]` is their number; the first `num_*[i]` entries of `*_indices[i]` are their indices, ascending.
    """

    num_partial: Int32Array  # (query blocks,)
    partial_indices: Int32Array  # (query blocks, key blocks)
    num_full: Int32Array  # (query blocks,)
    full_indices: Int32Array  # (query blocks, key blocks)


@dataclass(frozen=True)
class TreeIntervals:
    """The subtrees of a forward pass's keys, as intervals of tree rows.

    The first `num_rows` keys belong to the queries, padding included. The cached tokens' keys follow, then padding up to a
    multiple of BLOCK. A padding query attends only to itself; no query attends to the padding keys after the cached ones.
    """

    num_rows: int
    row: Int32Array  # (keys,) the tree row; padding comes after the tree
    end: Int32Array  # (keys,) where the subtree ends
    depth: Int32Array  # (keys,)

    @classmethod
    def of(cls, layout: RowLayout, num_rows: int, num_keys: int) -> "TreeIntervals":
        """`num_rows` and `num_keys` are multiples of BLOCK, and at least the layout's numbers of queries and keys."""
        tree = layout.tree
        row = tree.num_tokens + np.arange(num_keys, dtype=np.int32)
        end, depth = row + 1, np.zeros(num_keys, np.int32)
        end[num_rows:] = row[num_rows:]  # empty
        ends = tree.end()
        for first, tree_rows in ((0, layout.computed), (num_rows, layout.cached)):
            keys = slice(first, first + len(tree_rows))
            row[keys], end[keys], depth[keys] = tree_rows, ends[tree_rows], tree.depth[tree_rows]
        return cls(num_rows, row, end, depth)

    @property
    def num_keys(self) -> int:
        return len(self.row)

    def blocks(self, window: int | None) -> KeyBlocks:
        """The blocks for a sliding window of so many tokens; None: no window.

        A partial block contains both allowed and other pairs, a full block allowed pairs only.
        """
        limit = FAR if window is None else min(window, FAR)
        keys, queries = self.depth.reshape(-1, BLOCK), self.query_depth.reshape(-1, BLOCK)
        some = self._nearest < limit
        full = self._covered & (queries.max(1)[:, None] - keys.min(1) < limit)
        return KeyBlocks(*listed(some & ~full), *listed(full))

    @property
    def query_depth(self) -> Int32Array:
        """(rows,)"""
        return self.depth[: self.num_rows]

    @cached_property
    def _queries(self) -> tuple[IntArray, IntArray]:
        """(keys,) each: the first query in a key's subtree, and the first one after it."""
        queries = self.row[: self.num_rows]  # ascending
        return np.searchsorted(queries, self.row), np.searchsorted(queries, self.end)

    @cached_property
    def _covered(self) -> BoolArray:
        """(query blocks, key blocks): whether each query of the one is in the subtree of each key of the other."""
        first, stop = (each.reshape(-1, BLOCK) for each in self._queries)
        start = np.arange(0, self.num_rows, BLOCK)[:, None]
        covered: BoolArray = (first.max(1) <= start) & (start + BLOCK <= stop.min(1))
        return covered

    @cached_property
    def _nearest(self) -> Int32Array:
        """(query blocks, key blocks): the smallest `depth[q] - depth[k]` with q in k's subtree; FAR if there is none.

        A key's queries are an interval: the end of one block, whole blocks, the start of another. Each is handled separately.
        """
        first, stop = self._queries
        key_block = np.arange(self.num_keys) // BLOCK
        depth = self.query_depth.reshape(-1, BLOCK)
        begin, end = -(-first // BLOCK), stop // BLOCK
        whole = begin < end
        shape = len(depth), self.num_keys // BLOCK
        deepest = covering_maxima(begin[whole], end[whole], key_block[whole], self.depth[whole], shape)
        nearest = np.where(deepest >= 0, depth.min(1)[:, None] - deepest, FAR)

        head = first < np.minimum(stop, begin * BLOCK)
        least = range_minima(self.query_depth, first[head], np.minimum(stop, begin * BLOCK)[head])
        np.minimum.at(nearest, (first[head] // BLOCK, key_block[head]), least - self.depth[head])

        tail = np.maximum(first, end * BLOCK) < stop
        tail &= begin <= end  # else all of the key's queries are inside one block, and `head` has handled them
        least = np.minimum.accumulate(depth, axis=1).reshape(-1)[stop[tail] - 1]
        np.minimum.at(nearest, (end[tail], key_block[tail]), least - self.depth[tail])
        return nearest


def covering_maxima(
    first: IntArray, stop: IntArray, column: IntArray, values: Int32Array, shape: tuple[int, int]
) -> Int32Array:
    """(rows, columns): per row and column, the largest value of the intervals `[first, stop)` that contain the row; else -1.

    Each interval is the union of two overlapping intervals whose length is a power of two. The longest are entered first,
    then halved down to single rows.
    """
    found = np.full(shape, -1, np.int32)
    exponents = np.frexp(stop - first)[1] - 1  # of the largest power of two in the length
    for exponent in range(int(exponents.max(initial=0)), -1, -1):
        chosen = exponents == exponent
        for start in (first[chosen], stop[chosen] - (1 << exponent)):
            np.maximum.at(found, (start, column[chosen]), values[chosen])
        if half := (1 << exponent) // 2:
            found[half:] = np.maximum(found[half:], found[:-half])
    return found


def range_minima(values: Int32Array, start: IntArray, stop: IntArray) -> Int32Array:
    """The minimum of `values[start[i] : stop[i]]` for each i; no slice may be empty. Fastest if `start` ascends."""
    edges = np.stack([start, stop], axis=1).reshape(-1)
    return np.minimum.reduceat(np.append(values, values[-1:]), edges)[::2] if len(edges) else values[:0]


def listed(mask: BoolArray) -> tuple[Int32Array, Int32Array]:
    """Per row, the number of columns that are set, and all column indices with those of the set columns first."""
    return mask.sum(1, dtype=np.int32), np.argsort(~mask, axis=1, kind="stable").astype(np.int32)
