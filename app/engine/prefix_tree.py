"""The prefix tree of a batch: its distinct tokens, and which of them each may attend to. Knows no torch and no model.

A sequence is encoded as a key: its token ids as big-endian 32-bit words. Keys sort like the lists of ids, neighbours in
sorted order share the longest prefixes, and one XOR finds the common prefix of two keys. The depth-first layout of the tree
follows the sorted order: it appends, for each sequence, the tokens that it does not share with the one before.
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from sys import byteorder

import numpy as np
from numpy.typing import NDArray

TOKEN_BYTES = 4
IntArray = NDArray[np.int64]


def encode_key(token_ids: Sequence[int]) -> bytes:
    words = array("I", token_ids)
    if byteorder == "little":
        words.byteswap()
    return words.tobytes()


def decode_key(key: bytes) -> IntArray:
    return np.frombuffer(key, dtype=">u4").astype(np.int64)


def num_common_tokens(a: bytes, b: bytes) -> int:
    """The length of the longest common prefix of two keys, in tokens."""
    size = min(len(a), len(b))
    if a[:TOKEN_BYTES] != b[:TOKEN_BYTES]:
        return 0
    difference = int.from_bytes(a[:size]) ^ int.from_bytes(b[:size])
    return (size * 8 - difference.bit_length()) // (8 * TOKEN_BYTES)


class TreeSize:
    """The number of tokens in a tree as keys are added."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._keys: list[bytes] = []

    def cost(self, key: bytes) -> int:
        """How many tokens `key` would add: its length minus that of its longest prefix in the tree."""
        index = bisect_left(self._keys, key)
        neighbours = self._keys[max(index - 1, 0) : index + 1]
        return len(key) // TOKEN_BYTES - max((num_common_tokens(key, other) for other in neighbours), default=0)

    def add(self, key: bytes, cost: int | None = None) -> int:
        """Adds the key and returns its cost. Pass `cost` if it is known."""
        cost = self.cost(key) if cost is None else cost
        insort(self._keys, key)
        self.num_tokens += cost
        return cost


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """A batch's token trie in depth-first order, as one packed row of `num_tokens`.

    Token q attends to token k exactly if `k <= q < end()[k]` (and, with a sliding window of w, `depth[q] - depth[k] < w`).
    """

    token_ids: IntArray  # (num_tokens,)
    depth: IntArray  # (num_tokens,) a token's position in its sequences
    paths: list[IntArray]  # per sequence, in the caller's order: the rows of its tokens, first to last
    tails: list[tuple[int, int]]  # per sequence, in the caller's order: the depth of its first own token, its length
    forks: list[tuple[int, int]]
    """Per tail in depth-first order: the depth at which it branches off the path before it, and its first row."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def end(self) -> IntArray:
        """Per token, the row after its subtree: the first row of the next tail that starts no deeper than the token."""
        end = np.full(self.num_tokens, self.num_tokens, np.int64)
        open_rows = np.empty(0, np.int64)  # the rows of the current path, by depth
        stops = [*(row for _, row in self.forks[1:]), self.num_tokens]
        for (shared, start), stop in zip(self.forks, stops, strict=True):
            end[open_rows[shared:]] = start
            open_rows = np.concatenate([open_rows[:shared], np.arange(start, stop)])
        return end

    @classmethod
    def of(cls, keys: Sequence[bytes]) -> "PrefixTree":
        """The tree of at least one key, none of them empty. Equal keys share one path."""
        order = sorted(range(len(keys)), key=keys.__getitem__)
        paths: list[IntArray] = [np.empty(0, np.int64)] * len(keys)
        tails: list[tuple[int, int]] = [(0, 0)] * len(keys)
        numbers = np.arange(sum(map(len, keys)) // TOKEN_BYTES)  # slices of it are the rows and the depths
        num_rows, before, path = 0, b"", numbers[:0]
        own, depth, forks = [], [], []
        for i in order:
            key = keys[i]
            length, shared = len(key) // TOKEN_BYTES, num_common_tokens(before, key)
            stop = num_rows + length - shared
            path = np.concatenate([path[:shared], numbers[num_rows:stop]])
            paths[i], tails[i] = path, (shared, length)
            own.append(key[shared * TOKEN_BYTES :])
            depth.append(numbers[shared:length])
            forks.append((shared, num_rows))
            num_rows, before = stop, key
        return cls(decode_key(b"".join(own)), np.concatenate(depth), paths, tails, forks)
