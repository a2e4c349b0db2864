"""The index of a prefix cache: the prefixes whose keys and values are cached, and the pages that hold them. Knows no torch.

A page holds up to 64 tokens, the block of the CPU's attention. Pages form a tree in which a path from the root spells a
prefix: a page's keys and values were computed after the tokens of all its ancestors. A page that is not full is a leaf. A
lookup compares token ids (never hashes) and can match the first tokens of a page.

Eviction is scan-resistant, like a segmented LRU cache: pages that only one batch used are evicted before pages that a later
batch read. The latter may take at most three quarters of all pages. A page is evicted before its ancestors.
"""

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from app.engine.prefix_tree import TOKEN_BYTES, IntArray, PrefixTree, num_common_tokens

PAGE_TOKENS = 64
PAGE_BYTES = PAGE_TOKENS * TOKEN_BYTES  # of a key
MIN_PREFIX_TOKENS = 32
"""The smallest `min_prefix_tokens` of any model."""
MIN_PREFIX_FLOPS = 1e7
"""Finding and storing a prefix costs about as much as this many floating-point operations: about 50 us of one processor."""
PROTECTED_SHARE = 0.75


def least_prefix_tokens(flops_per_token: float) -> int:
    """The minimum length in tokens of cached prefixes: computing shorter ones is faster than looking them up."""
    return max(MIN_PREFIX_TOKENS, math.ceil(MIN_PREFIX_FLOPS / flops_per_token))


class Page:
    """The keys and values of up to 64 tokens. `tokens` holds their ids, encoded as a key; the root has none."""

    __slots__ = ("children", "index", "last_batch", "order", "parent", "tokens")

    def __init__(self, parent: "Page | None", tokens: bytes, index: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.index = index
        self.last_batch = 0  # the last batch that used it
        self.children: dict[bytes, Page] = {}
        self.order: list[bytes] = []  # the children's tokens, sorted

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // TOKEN_BYTES

    def nearest_child(self, tokens: bytes) -> tuple["Page | None", int]:
        """The child with the longest common prefix with `tokens`, and its length in tokens."""
        if (child := self.children.get(tokens)) is not None:
            return child, child.num_tokens
        index = bisect_left(self.order, tokens)
        best: tuple[Page | None, int] = (None, 0)
        for other in self.order[max(index - 1, 0) : index + 1]:
            shared = num_common_tokens(other, tokens)
            if shared > best[1]:
                best = self.children[other], shared
        return best

    def attach(self, child: "Page") -> None:
        self.children[child.tokens] = child
        self.order.insert(bisect_left(self.order, child.tokens), child.tokens)

    def detach(self, child: "Page") -> None:
        del self.children[child.tokens]
        del self.order[bisect_left(self.order, child.tokens)]


@dataclass(slots=True)
class Statistics:
    """The cache's content now, and its evictions since the model was loaded."""

    num_cached_tokens: int = 0
    num_evicted_pages: int = 0


@dataclass(slots=True)
class Reservation:
    """The pages that one batch reads, and those that it fills. A slot is a token's index in the pool: 64 * page + offset."""

    slots: IntArray  # (tree rows,) the slot of a cached row, -1 if it is not cached
    num_cached_tokens: list[int]  # per sequence
    generation: int  # of the cache; a later one means that it was cleared since, and the reservation is void
    version: int  # of the cache at the lookup
    page_of: dict[int, int] = field(default_factory=dict)  # the pages to fill, by the tree row of their last token
    filled_rows: IntArray = field(default_factory=lambda: np.empty(0, np.int64))  # the tree rows to copy
    filled_slots: IntArray = field(default_factory=lambda: np.empty(0, np.int64))  # the slots to copy them to

    @property
    def is_empty(self) -> bool:
        """Whether the batch neither reads pages nor fills any."""
        return not len(self.filled_slots) and not any(self.num_cached_tokens)


class PrefixCache:
    """Finds cached prefixes and decides which pages to keep, at most `num_pages`. Not thread-safe.

    Prefixes and sequences shorter than `min_prefix_tokens` are neither looked up nor stored.
    """

    def __init__(self, num_pages: int, min_prefix_tokens: int = MIN_PREFIX_TOKENS) -> None:
        self.num_pages = num_pages
        self.min_prefix_tokens = min_prefix_tokens
        self.statistics = Statistics()
        self._batch = 0
        self._generation = 0  # increases when the cache is cleared
        self._version = 0  # increases when it is cleared or a page is added
        self.clear()

    def clear(self) -> None:
        """Empties the cache."""
        self._generation += 1
        self._version += 1
        self._root = Page(None, b"", -1)
        self._free = list(range(self.num_pages - 1, -1, -1))  # popped from the end, lowest index first
        self._once: OrderedDict[Page, None] = OrderedDict()  # used by one batch; least recently used first
        self._protected: OrderedDict[Page, None] = OrderedDict()  # used by several batches; likewise
        self.statistics.num_cached_tokens = 0

    def resize(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.clear()

    @property
    def is_empty(self) -> bool:
        return not self._root.children

    def may_use(self, key: bytes) -> bool:
        """Whether the sequence is long enough for the cache."""
        return len(key) >= self.min_prefix_tokens * TOKEN_BYTES

    def num_cached_tokens(self, key: bytes) -> int:
        """The length of the longest cached prefix of a key, in tokens; 0 if it is too short to be used."""
        return sum(shared for _, shared in self._find(key))

    # -- a batch ----------------------------------------------------------------------------------------------------

    def reserve(self, keys: Sequence[bytes], tree: PrefixTree) -> Reservation:
        """Looks up the cached prefixes of the batch's sequences, and takes pages for the other tokens while there are any.

        The caller must then call either `publish` or `release`. It may reserve for the next batch first, provided that the
        device writes the next batch's keys only after it has run this batch.
        """
        self._batch += 1
        reservation = Reservation(np.full(tree.num_tokens, -1, np.int64), [], self._generation, self._version)
        known: list[int] = []  # per sequence, the tokens in pages that need not be written again
        for key, path in zip(keys, tree.paths, strict=True):
            found = self._find(key)
            num_cached = sum(shared for _, shared in found)
            for start, (page, shared) in zip(range(0, num_cached, PAGE_TOKENS), found, strict=True):
                first = page.index * PAGE_TOKENS
                reservation.slots[path[start : start + shared]] = np.arange(first, first + shared)
            if found:
                self._use([page for page, _ in found])
            reservation.num_cached_tokens.append(num_cached)
            is_known = num_cached == len(path) or num_cached % PAGE_TOKENS == 0
            known.append(num_cached if is_known else num_cached // PAGE_TOKENS * PAGE_TOKENS)
        self._take_pages(reservation, tree, known)
        return reservation

    def _take_pages(self, reservation: Reservation, tree: PrefixTree, known: Sequence[int]) -> None:
        """Takes a page for every block of every path that has none. A block gets one only if the block before it has one."""
        rows, slots = [], []
        for path, num_known in zip(tree.paths, known, strict=True):
            if len(path) < self.min_prefix_tokens:
                continue
            for start in range(num_known, len(path), PAGE_TOKENS):
                block = path[start : start + PAGE_TOKENS]
                last = int(block[-1])
                if last in reservation.page_of:
                    continue
                page = self._take_page()
                if page is None:
                    break
                reservation.page_of[last] = page
                rows.append(block)
                slots.append(np.arange(page * PAGE_TOKENS, page * PAGE_TOKENS + len(block)))
        if rows:
            reservation.filled_rows, reservation.filled_slots = np.concatenate(rows), np.concatenate(slots)

    def publish(self, keys: Sequence[bytes], tree: PrefixTree, reservation: Reservation) -> None:
        """Adds the filled pages to the index, so that later batches find them. Call it after the keys were written."""
        if reservation.generation != self._generation:
            return
        for key, path in zip(keys, tree.paths, strict=True):
            if len(path) < self.min_prefix_tokens:
                continue
            page, trail = self._root, []
            for start in range(0, len(path), PAGE_TOKENS):
                tokens = key[start * TOKEN_BYTES : start * TOKEN_BYTES + PAGE_BYTES]
                nearest, shared = page.nearest_child(tokens)
                num_tokens = len(tokens) // TOKEN_BYTES
                if (
                    nearest is None or shared < num_tokens
                ):  # else there is an equal page, or a longer one with this prefix
                    index = reservation.page_of.pop(int(path[start + num_tokens - 1]), None)
                    if index is None:
                        break
                    if nearest is not None and shared == nearest.num_tokens:  # the new page contains it
                        self._remove(nearest)
                    nearest = Page(page, tokens, index)
                    self._version += 1
                    nearest.last_batch = self._batch
                    page.attach(nearest)
                    self._once[nearest] = None
                    self.statistics.num_cached_tokens += num_tokens
                trail.append(nearest)
                page = nearest
            self._refresh(trail)
        self.release(reservation)

    def release(self, reservation: Reservation) -> None:
        """Frees the pages that were taken and not published."""
        if reservation.generation == self._generation:
            self._free += reservation.page_of.values()
        reservation.page_of = {}

    def is_current(self, reservation: Reservation, keys: Sequence[bytes]) -> bool:
        """Whether reserving again would find no more cached tokens than `reservation` has."""
        if reservation.version == self._version:
            return True
        known = zip(keys, reservation.num_cached_tokens, strict=True)
        is_all_known = all(self.num_cached_tokens(key) <= num_cached for key, num_cached in known)
        return reservation.generation == self._generation and is_all_known

    # -- pages ------------------------------------------------------------------------------------------------------

    def _find(self, key: bytes) -> list[tuple[Page, int]]:
        """The pages along a key, each with the number of its first tokens that match. Only the last may match in part.

        Empty if the prefix would be shorter than `min_prefix_tokens`.
        """
        if not self.may_use(key):
            return []
        page, found = self._root, []
        for start in range(0, len(key), PAGE_BYTES):
            child, shared = page.nearest_child(key[start : start + PAGE_BYTES])
            if child is None:
                break
            found.append((child, shared))
            if shared < PAGE_TOKENS:
                break
            page = child
        num_found = sum(shared for _, shared in found)
        return found if num_found >= self.min_prefix_tokens else []

    def _use(self, pages: Sequence[Page]) -> None:
        """Marks pages, a path from the root, as read by the current batch, which makes them protected."""
        for page in reversed(pages):  # the deepest first, so that each is evicted before its ancestors
            page.last_batch = self._batch
            self._once.pop(page, None)
            self._protected[page] = None
            self._protected.move_to_end(page)
        while len(self._protected) > max(self.num_pages * PROTECTED_SHARE, 1):
            demoted, _ = self._protected.popitem(last=False)
            self._once[demoted] = None

    def _refresh(self, trail: Sequence[Page]) -> None:
        """Marks the pages of a path as most recently used, the deepest first."""
        for page in reversed(trail):
            page.last_batch = self._batch
            (self._protected if page in self._protected else self._once).move_to_end(page)

    def _take_page(self) -> int | None:
        """The index of a free page, evicting one if necessary; None if the current batch uses all of them."""
        if not self._free:
            victim = next((page for page in self._victims() if page.last_batch != self._batch), None)
            if victim is None:
                return None
            self._remove(victim)
            self.statistics.num_evicted_pages += 1
        return self._free.pop()

    def _victims(self) -> Iterator[Page]:
        """The next page to evict of those used by one batch, then of the protected ones."""
        yield from (next(iter(order)) for order in (self._once, self._protected) if order)

    def _remove(self, page: Page) -> None:
        assert page.parent is not None
        assert not page.children, "a page is removed before its ancestors"
        page.parent.detach(page)
        self._once.pop(page, None)
        self._protected.pop(page, None)
        self._free.append(page.index)
        self.statistics.num_cached_tokens -= page.num_tokens

    def check(self) -> Self:
        """Raises AssertionError if the pages are inconsistent; for tests."""
        held = [*self._once, *self._protected]
        indices = [page.index for page in held] + self._free
        assert sorted(indices) == list(range(self.num_pages))
        for page in held:
            assert page.parent is not None
            assert page.parent.children[page.tokens] is page
            assert page.parent is self._root or page.parent.num_tokens == PAGE_TOKENS
        assert self.statistics.num_cached_tokens == sum(page.num_tokens for page in held)
        return self
