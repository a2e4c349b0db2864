"""SDPA over blocks of queries: the CPU's backend, which gives exact results on any device.

Blocks of up to 64 queries are aligned to *absolute positions*. A query is computed with all keys up to its block's end, the
keys after its own position masked. So its bits depend only on its position, whatever the shape of the tree and the rest of
the batch. Only the wanted queries of a block are computed, in steps of 16: a query's bits do not depend on its neighbours
(the self-test at start checks this). Equal parts of blocks at one position run as one call.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from app.engine.abandonment import check_wanted
from app.engine.attention.backend import LayerOptions
from app.engine.devices import upload
from app.engine.prefix_tree import IntArray
from app.engine.row_layout import RowLayout

BLOCK = 64
STEP = 16
"""The number of queries computed together, and the position of the first, are multiples of this."""
BLOCKS_PER_CHECK = 16
"""`check_wanted` is called once per this many blocks of a layer."""
MAX_KEY_ROWS = 1 << 14
"""The most rows of keys that one SDPA call copies, so that a wide tree over a long prefix fits in memory."""


Rows: TypeAlias = Tensor | slice
"""Indices of rows; a slice if they are consecutive, since reading and writing those needs no copy."""
ALIGNMENT = 64
"""Bytes. A product's bits may depend on where its operands begin relative to a cache line."""


def padded_length(num_rows: int, multiple: int) -> int:
    return -(-num_rows // multiple) * multiple


@dataclass(frozen=True)
class Queries:
    """The queries of one path that are computed. Row `rows[i]` holds the query at `positions[i]`, and receives its output."""

    path: IntArray  # (length,) key rows, by position
    positions: IntArray  # (n,)
    rows: IntArray  # (n,)

    @cached_property
    def num_consecutive_keys(self) -> int:
        return num_consecutive(self.path)


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """The same part of a query block for several paths, one unit per path that has queries there."""

    part: "BlockPart"
    num_units: int
    query_rows: Rows  # units * part.length of them, any row where no query is wanted
    key_rows: Rows  # units * part.num_keys of them; after the path's end its first row, which causality masks
    kept: Rows  # n, the wanted queries among units * length
    rows: Rows  # n, the rows of their outputs
    path: Tensor | None = None  # if given, `key_rows` is a view of its beginning

    def key_rows_from(self, first: int) -> Rows:
        """`key_rows` without the first `first` of each unit."""
        if isinstance(self.key_rows, slice):
            return slice(self.key_rows.start + first, self.key_rows.stop)
        return self.key_rows.view(self.num_units, -1)[:, first:].reshape(-1)

    def to(self, device: torch.device, paths: dict[int, Tensor]) -> "QueryBlock":
        """`paths` maps the address of a path on the host to its copy on the device, and gets what is missing."""
        path, key_rows = self.path, self.key_rows
        if path is not None:
            address = path.data_ptr()
            path = paths[address] = paths[address] if address in paths else upload(path, device)
            key_rows = path[: self.part.num_keys]
        query_rows, key_rows, kept, rows = (
            rows if isinstance(rows, slice) else upload(rows, device)
            for rows in (self.query_rows, key_rows, self.kept, self.rows)
        )
        return QueryBlock(self.part, self.num_units, query_rows, key_rows, kept, rows, path)


class BlockPart(NamedTuple):
    """Some queries of the block that begins at position `start`: `length` of them from `position` on."""

    start: int
    position: int
    length: int

    @property
    def num_keys(self) -> int:
        """The keys up to the end of the block."""
        return self.start + block_length(self.start)


def query_blocks(wanted: list[Queries]) -> list[QueryBlock]:
    """The blocks that compute all wanted queries, ordered by position. Only a block of one unit may exceed MAX_KEY_ROWS."""
    units: dict[BlockPart, list[tuple[Queries, slice]]] = {}
    for queries in wanted:
        for part, chosen in split_at_blocks(queries.positions):
            units.setdefault(part, []).append((queries, chosen))
    blocks = []
    for part, members in sorted(units.items()):
        most = max(MAX_KEY_ROWS // part.num_keys, 1)
        blocks += [query_block(part, members[i : i + most]) for i in range(0, len(members), most)]
    return blocks


def block_start(position: int) -> int:
    """The first position of the block that contains `position`. Blocks start at 0, 16, 32, then at each multiple of BLOCK."""
    return position // BLOCK * BLOCK if position >= BLOCK else (0, 16, 32, 32)[position // 16]


def block_length(start: int) -> int:
    return 16 if start < 32 else 32 if start == 32 else BLOCK  # noqa: PLR2004 - see block_start


def split_at_blocks(positions: IntArray) -> Iterator[tuple[BlockPart, slice]]:
    """Splits ascending positions at block boundaries: each part, with the slice of `positions` inside it."""
    done, last = 0, int(positions[-1])
    while done < len(positions):
        first = int(positions[done])
        start = block_start(first)
        end = start + block_length(start)
        stop, reached = len(positions), last
        if last >= end:
            stop = int(np.searchsorted(positions, end))
            reached = int(positions[stop - 1])
        yield part_with(start, first, reached), slice(done, stop)
        done = stop


@lru_cache(maxsize=4096)
def part_with(start: int, first: int, last: int) -> BlockPart:
    """The part with the positions `first` to `last` of the block that begins at `start`, in whole steps."""
    position = first // STEP * STEP
    return BlockPart(start, position, padded_length(last + 1 - position, STEP))


def query_block(part: BlockPart, members: list[tuple[Queries, slice]]) -> QueryBlock:
    counts = [chosen.stop - chosen.start for _, chosen in members]
    offsets = np.arange(len(members)) * part.length - part.position
    kept = np.concatenate([queries.positions[chosen] for queries, chosen in members]) + np.repeat(offsets, counts)
    rows = np.concatenate([queries.rows[chosen] for queries, chosen in members])
    query_rows = np.zeros(len(members) * part.length, np.int64)
    query_rows[kept] = rows
    path: Tensor | None = None
    key_rows: Rows | None = None
    if len(members) == 1:
        queries = members[0][0]
        if queries.num_consecutive_keys >= part.num_keys:
            first = int(queries.path[0])
            key_rows = slice(first, first + part.num_keys)
        elif len(queries.path) >= part.num_keys:
            # Copying every prefix of a text would take memory quadratic in its length: 62 GB for a million tokens.
            path = torch.from_numpy(queries.path)
            key_rows = path[: part.num_keys]
    if key_rows is None:
        key_rows = torch.from_numpy(copied_key_rows(part, members))
    return QueryBlock(part, len(members), as_rows(query_rows), key_rows, as_rows(kept), as_rows(rows), path)


def as_rows(indices: IntArray) -> Rows:
    """At least one index, as a slice if they are consecutive."""
    if num_consecutive(indices) < len(indices):
        return torch.from_numpy(indices)
    return slice(int(indices[0]), int(indices[-1]) + 1)


def num_consecutive(indices: IntArray) -> int:
    """How many indices at the beginning are each the one before plus 1, the first included."""
    gaps = np.flatnonzero(np.diff(indices) != 1)
    return int(gaps[0]) + 1 if len(gaps) else len(indices)


def copied_key_rows(part: BlockPart, members: list[tuple[Queries, slice]]) -> IntArray:
    """(units * part.num_keys,)"""
    key_rows = np.empty((len(members), part.num_keys), np.int64)
    for unit, (queries, _) in enumerate(members):
        on_path = queries.path[: part.num_keys]
        key_rows[unit, : len(on_path)] = on_path
        key_rows[unit, len(on_path) :] = on_path[0]  # not another path's row: 0 times its infinity would be NaN
    return key_rows.reshape(-1)


class BlockAttention:
    """A `TreeAttention` for chosen queries, on the device of each layer."""

    def __init__(self, wanted: Callable[[], list[Queries]]) -> None:
        """`wanted` is called when the blocks are first needed, so never for a model of one layer."""
        self._wanted = wanted
        self._by_device: dict[torch.device, list[QueryBlock]] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: LayerOptions) -> Tensor:
        """As `TreeAttention.attend`, except that `key` and `value` may have other rows than `query`. Unwanted rows are 0."""
        return block_attention(query[0], key[0], value[0], self._on(query.device), options)

    def upload(self, device: torch.device, windows: Iterable[int | None]) -> None:  # noqa: ARG002 - blocks serve every window
        if device.type != "cpu":  # the CPU needs no copy; its blocks are built by the first layer that attends
            self._on(device)

    def _on(self, device: torch.device) -> list[QueryBlock]:
        if device not in self._by_device:
            paths: dict[int, Tensor] = {}
            self._by_device[device] = [block.to(device, paths) for block in self._blocks]
        return self._by_device[device]

    @cached_property
    def _blocks(self) -> list[QueryBlock]:
        return query_blocks(self._wanted())


class BlockBackend:
    """The `AttentionBackend` that calls SDPA in blocks."""

    def num_rows(self, num_tokens: int, row_multiple: int) -> int:
        return padded_length(num_tokens, row_multiple)

    def num_keys(self, num_rows: int, num_cached: int) -> int:
        return num_rows + num_cached

    def prepare(self, layout: RowLayout, num_rows: int) -> BlockAttention:
        return BlockAttention(partial(own_queries, layout, num_rows))


def own_queries(layout: RowLayout, num_rows: int) -> list[Queries]:
    """The query of each computed token once, on the path of the sequence whose own tail contains the token."""
    tree, is_computed = layout.tree, layout.is_computed
    wanted = []
    for path, (shared, length) in zip(tree.paths, tree.tails, strict=True):
        positions = np.arange(shared, length)
        if is_computed is not None:
            positions = positions[is_computed[path[shared:]]]
        if len(positions):
            wanted.append(Queries(layout.key_rows(path, num_rows), positions, layout.packed_rows(path[positions])))
    return wanted


def block_attention(
    query: Tensor,  # (heads, rows, head_dim)
    key: Tensor,  # (key_value_heads, key_rows, head_dim)
    value: Tensor,  # (key_value_heads, key_rows, value_dim)
    blocks: list[QueryBlock],
    options: LayerOptions,
) -> Tensor:
    """Attention block by block: (1, rows, heads, value_dim), zeros where no block keeps a row."""
    window = options.window
    keys, values = by_token(key), by_token(value)
    queries = by_token(query)
    out = queries.new_zeros(query.shape[1], query.shape[0] * value.shape[2])  # (rows, heads * value_dim)
    for i, block in enumerate(blocks):
        if i % BLOCKS_PER_CHECK == BLOCKS_PER_CHECK - 1:
            check_wanted()
        part, units = block.part, block.num_units
        first = 0 if window is None else max(part.start - window + 1, 0) // BLOCK * BLOCK
        key_rows = block.key_rows_from(first)
        attended = masked_attention(
            by_head(queries, block.query_rows, units, query.shape[0]),  # (units, heads, length, head_dim)
            by_head(keys, key_rows, units, key.shape[0]),  # (units, key_value_heads, num_keys, head_dim)
            by_head(values, key_rows, units, value.shape[0]),
            part_mask(part, first, window, query.dtype, query.device),  # (length, num_keys)
            options,
        )
        write(out, block, attended.transpose(1, 2))
    return out.view(1, query.shape[1], query.shape[0], value.shape[2])


def write(out: Tensor, block: QueryBlock, attended: Tensor) -> None:
    """Writes the wanted of the attended queries (units, length, heads, value_dim) to their rows of (rows, heads * value_dim)."""
    if isinstance(block.rows, slice) and isinstance(block.kept, slice) and block.num_units == 1:
        out[block.rows].view(-1, *attended.shape[2:]).copy_(attended[0, block.kept])
        return
    wanted = picked(attended.reshape(-1, out.shape[1]), block.kept)
    if isinstance(block.rows, slice):
        out[block.rows] = wanted
    else:
        out.index_copy_(0, block.rows, wanted)


def by_token(states: Tensor) -> Tensor:
    """(heads, rows, dim) as (rows, heads * dim): the layout that projections produce, so usually a view."""
    return states.transpose(0, 1).reshape(states.shape[1], -1)


def by_head(states: Tensor, rows: Rows, units: int, num_heads: int) -> Tensor:
    """The given rows, units * n of them, as (units, heads, n, dim)."""
    chosen = picked(states, rows)
    return chosen.view(units, len(chosen) // units, num_heads, -1).transpose(1, 2)


def picked(states: Tensor, rows: Rows) -> Tensor:
    """The given rows of (rows, width) in consecutive memory: a copy, or a view that begins as a copy would."""
    if not isinstance(rows, slice):
        return states.index_select(0, rows)
    chosen = states[rows]
    is_as_copied = chosen.is_contiguous() and chosen.storage_offset() * chosen.element_size() % ALIGNMENT == 0
    return chosen if is_as_copied else chosen.clone(memory_format=torch.contiguous_format)


def part_mask(part: BlockPart, first: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(length, num_keys - first): the part's rows of its block's mask, for the keys from position `first`."""
    mask, begin = (
        block_mask(part.start - first, block_length(part.start), window, dtype, device),
        part.position - part.start,
    )
    return mask[begin : begin + part.length]


_masks: dict[tuple[int, int | None, torch.dtype, torch.device], Tensor] = {}
"""By length, window, dtype and device, the widest mask so far. Narrower masks are its rightmost columns."""


def block_mask(offset: int, length: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(length, offset + length): for the queries from position `offset`, 0 for an allowed key, minus infinity for others.

    A key is allowed by its distance from the query, so one mask serves every offset: 33 MB for 131,072 tokens.
    """
    num_keys, kind = offset + length, (length, window, dtype, device)
    widest = _masks.get(kind)
    if widest is None or widest.shape[1] < num_keys:
        widest = _masks[kind] = widest_mask(1 << (num_keys - 1).bit_length(), length, window, dtype).to(device)
    return widest[:, widest.shape[1] - num_keys :]


def widest_mask(num_keys: int, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """(length, num_keys): the mask of the last `length` of `num_keys` positions."""
    distance = torch.arange(num_keys - length, num_keys, dtype=torch.int32)[:, None]
    distance = distance - torch.arange(num_keys, dtype=torch.int32)
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, options: LayerOptions) -> Tensor:
    """softmax(softcap(q k^T * scaling) + mask) v, with grouped-query attention; (units, heads, length, value_dim)."""
    scaling, softcap = options.scaling, options.softcap
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
    groups = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = query @ key.repeat_interleave(groups, 1).transpose(-1, -2) * scale
    weights = torch.softmax(torch.tanh(logits / softcap) * softcap + mask, dim=-1)
    attended: Tensor = weights @ value.repeat_interleave(groups, 1)
    return attended
