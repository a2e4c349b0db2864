"""Which prefixes a model has computed before, and the pages that hold their keys and values. Knows no torch.

A page has room for 64 tokens, the block of the CPU's attention. Pages form a tree: a page holds the keys and values of its
tokens behind all the tokens of its ancestors, so that a path from the root spells a prefix. A page that is not full is a
leaf. A lookup compares token ids, never hashes, and matches part of a page too.

Eviction is scan-resistant, as in a segmented LRU cache: pages that were used once are evicted before pages that were used
by a later batch, and these take three quarters of the pages at most. A page is evicted before its ancestors.
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
"""The least `min_prefix_tokens` of any model."""
MIN_PREFIX_FLOPS = 1e7
"""Finding and keeping a prefix costs about as much as so many floating-point operations: some 50 us of one processor."""
PROTECTED_SHARE = 0.75


def least_prefix_tokens(flops_per_token: float) -> int:
    """The least length of the prefixes that are looked up and kept: shorter ones are computed sooner than found."""
    return max(MIN_PREFIX_TOKENS, math.ceil(MIN_PREFIX_FLOPS / flops_per_token))


class Page:
    """The keys and values of up to 64 tokens. `tokens` are these tokens as a key; the root has none."""

    __slots__ = ("children", "index", "last_batch", "order", "parent", "tokens")

    def __init__(self, parent: "Page | None", tokens: bytes, index: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.index = index
        self.last_batch = 0  # that used it
        self.children: dict[bytes, Page] = {}
        self.order: list[bytes] = []  # the children's tokens, sorted

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // TOKEN_BYTES

    def nearest_child(self, tokens: bytes) -> tuple["Page | None", int]:
        """The child that shares most tokens with `tokens`, and how many these are."""
        if (child := self.children.get(tokens)) is not None:
            return child, child.num_tokens
        place = bisect_left(self.order, tokens)
        best: tuple[Page | None, int] = (None, 0)
        for other in self.order[max(place - 1, 0) : place + 1]:
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
    """What the cache holds, and what it has done since the model was loaded."""

    num_cached_tokens: int = 0  # in the pages
    num_evicted_pages: int = 0


@dataclass(slots=True)
class Reservation:
    """The pages that one batch reads, and those that it fills. A slot is a token's place: 64 * page + offset."""

    slots: IntArray  # (tree rows,) where a cached row's keys and values are, -1 where none are
    num_cached_tokens: list[int]  # per sequence
    generation: int  # of the cache: a reservation from before it was cleared holds nothing in it
    version: int  # of the cache, when it looked
    page_of: dict[int, int] = field(default_factory=dict)  # the pages to fill, by the tree row of their last token
    filled_rows: IntArray = field(default_factory=lambda: np.empty(0, np.int64))  # the tree rows that go
    filled_slots: IntArray = field(default_factory=lambda: np.empty(0, np.int64))  # to these slots

    @property
    def is_empty(self) -> bool:
        """Whether the batch neither reads pages nor fills any."""
        return not len(self.filled_slots) and not any(self.num_cached_tokens)


class PrefixCache:
    """Finds cached prefixes and decides what is kept, in `num_pages` pages. Not thread-safe.

    Prefixes and sequences of fewer than `min_prefix_tokens` are neither looked up nor kept.
    """

    def __init__(self, num_pages: int, min_prefix_tokens: int = MIN_PREFIX_TOKENS) -> None:
        self.num_pages = num_pages
        self.min_prefix_tokens = min_prefix_tokens
        self.statistics = Statistics()
        self._batch = 0
        self._generation = 0  # changes when everything is forgotten
        self._version = 0  # changes when more becomes known, too
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._generation += 1
        self._version += 1
        self._root = Page(None, b"", -1)
        self._free = list(range(self.num_pages - 1, -1, -1))  # the lowest is taken first
        self._once: OrderedDict[Page, None] = OrderedDict()  # used by one batch; least recently used first
        self._protected: OrderedDict[Page, None] = OrderedDict()  # used by several; likewise
        self.statistics.num_cached_tokens = 0

    def resize(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.clear()

    @property
    def is_empty(self) -> bool:
        return not self._root.children

    def may_use(self, key: bytes) -> bool:
        """Whether the sequence is long enough for a prefix of it to be looked up and kept."""
        return len(key) >= self.min_prefix_tokens * TOKEN_BYTES

    def num_cached_tokens(self, key: bytes) -> int:
        """The length of the longest cached prefix of a key, in tokens; 0 where it is too short to be used."""
        return sum(shared for _, shared in self._find(key))

    # -- a batch ----------------------------------------------------------------------------------------------------

    def reserve(self, keys: Sequence[bytes], tree: PrefixTree) -> Reservation:
        """Finds what is cached of the batch's sequences and takes pages for the rest, as many as can be had.

        The caller then calls either `publish` or `release`. It may reserve for the next batch before that, once nothing
        that the next batch writes can come before what this one reads and writes.
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
        """Takes a page for every block of every path that has none, each after the block before it."""
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
        """Makes the filled pages known to later batches. For use once they hold what they should."""
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
                if nearest is None or shared < num_tokens:  # else an equal page, or a longer one that begins so
                    index = reservation.page_of.pop(int(path[start + num_tokens - 1]), None)
                    if index is None:
                        break
                    if nearest is not None and shared == nearest.num_tokens:  # a part of the new page
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
        """Gives back the pages that were taken and not published."""
        if reservation.generation == self._generation:
            self._free += reservation.page_of.values()
        reservation.page_of = {}

    def is_current(self, reservation: Reservation, keys: Sequence[bytes]) -> bool:
        """Whether to reserve for the keys anew would find nothing more."""
        if reservation.version == self._version:
            return True
        known = zip(keys, reservation.num_cached_tokens, strict=True)
        is_all_known = all(self.num_cached_tokens(key) <= num_cached for key, num_cached in known)
        return reservation.generation == self._generation and is_all_known

    # -- pages ------------------------------------------------------------------------------------------------------

    def _find(self, key: bytes) -> list[tuple[Page, int]]:
        """The pages along a key, each with how many of its first tokens the key has: all but for the last one.

        None where the prefix would be shorter than `min_prefix_tokens`.
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
        """Notes that the batch reads the pages, which are a path from the root: each is now protected."""
        for page in reversed(pages):  # the deepest first, so that each is evicted before its ancestors
            page.last_batch = self._batch
            self._once.pop(page, None)
            self._protected[page] = None
            self._protected.move_to_end(page)
        while len(self._protected) > max(self.num_pages * PROTECTED_SHARE, 1):
            demoted, _ = self._protected.popitem(last=False)
            self._once[demoted] = None

    def _refresh(self, trail: Sequence[Page]) -> None:
        """Moves the pages of a path to the recent end of their orders, the deepest first."""
        for page in reversed(trail):
            page.last_batch = self._batch
            (self._protected if page in self._protected else self._once).move_to_end(page)

    def _take_page(self) -> int | None:
        """A free page, or that of the page evicted for it; None where the batch itself uses all of them."""
        if not self._free:
            victim = next((page for page in self._victims() if page.last_batch != self._batch), None)
            if victim is None:
                return None
            self._remove(victim)
            self.statistics.num_evicted_pages += 1
        return self._free.pop()

    def _victims(self) -> Iterator[Page]:
        """The next page to evict of those that were used once, then of the others."""
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
        """Raises AssertionError where the pages are not in order; for tests."""
        held = [*self._once, *self._protected]
        indices = [page.index for page in held] + self._free
        assert sorted(indices) == list(range(self.num_pages))
        for page in held:
            assert page.parent is not None
            assert page.parent.children[page.tokens] is page
            assert page.parent is self._root or page.parent.num_tokens == PAGE_TOKENS
        assert self.statistics.num_cached_tokens == sum(page.num_tokens for page in held)
        return self
