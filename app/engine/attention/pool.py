"""The keys and values of cached tokens, layer by layer, and one batch's reads from and writes to them."""

import numpy as np
import torch
from torch import Tensor

from app.engine.attention.cpu import by_token
from app.engine.batch import Batch
from app.engine.devices import upload
from app.engine.prefix_cache import PAGE_TOKENS, PrefixCache, Reservation
from app.engine.prefix_tree import IntArray
from app.engine.row_layout import RowLayout

PAGE_OVERHEAD_BYTES = 2048
"""Memory for a page's token ids and its node in the tree, besides its keys and values."""


class KeyValuePool:
    """For each layer, the keys and the values of all slots, (slots, heads * dim) each. Allocated at first use."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._layers: list[tuple[Tensor, Tensor]] = []

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The slots of a layer, created with the width, dtype and device of the given rows."""
        if index == len(self._layers):
            slots = self.num_pages * PAGE_TOKENS
            self._layers.append((keys.new_empty(slots, keys.shape[1]), values.new_empty(slots, values.shape[1])))
        return self._layers[index]


class DeviceIndices:
    """Indices that a model's layers read on their devices; copied once per device."""

    def __init__(self, values: IntArray) -> None:
        self._values = values
        self._by_device: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._by_device:
            self._by_device[device] = upload(self._values, device)
        return self._by_device[device]


class CachedKeys:
    """One batch's view of the pool. Each layer calls `extend` once, in the order of the layers."""

    def __init__(
        self, pool: KeyValuePool, reservation: Reservation, layout: RowLayout, num_rows: int, num_keys: int
    ) -> None:
        self._pool = pool
        self._num_layers = 0
        self._num_cached = len(layout.cached)
        slots = reservation.slots[layout.cached]
        # Padding repeats a cached key: its weight is 0, but uninitialized memory could hold infinity, and 0 * inf is NaN.
        slots = np.pad(slots, (0, num_keys - num_rows - len(slots)), mode="edge") if len(slots) else slots
        self._slots = DeviceIndices(slots)  # (keys - rows,) to read
        self._num_filled = len(reservation.filled_slots)
        self._filled_rows = DeviceIndices(layout.key_rows(reservation.filled_rows, num_rows))  # (filled,)
        self._filled_slots = DeviceIndices(reservation.filled_slots)  # (filled,)
        self._sums: list[Tensor] = []  # of the keys and values written to the pool, per layer

    def upload(self, device: torch.device) -> None:
        """Copies the indices to the device ahead of the first layer."""
        for indices in (self._slots, self._filled_rows, self._filled_slots):
            indices.on(device)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the cached tokens' keys and values to the given ones, and copies the reserved rows to the pool.

        In: (1, heads, rows, dim), out: (1, heads, keys, dim).
        """
        keys, values = by_token(key[0]), by_token(value[0])  # (rows, heads * dim)
        pooled = self._pool.layer(self._num_layers, keys, values)
        self._num_layers += 1
        both = []
        for rows, slots, given in zip((keys, values), pooled, (key, value), strict=True):
            extended = with_slots(rows, slots, self._slots.on(rows.device)) if self._num_cached else rows
            if self._num_filled:
                filled = extended.index_select(0, self._filled_rows.on(rows.device))
                slots.index_copy_(0, self._filled_slots.on(rows.device), filled)
                self._sums.append(filled.sum(dtype=torch.float32))
            both.append(extended.view(1, len(extended), given.shape[1], given.shape[3]).transpose(1, 2))
        return both[0], both[1]

    def are_finite(self) -> bool:
        """Whether all keys and values written to the pool are finite, judged by their sums. Waits once per device."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for total in self._sums:
            by_device.setdefault(total.device, []).append(total)
        return all(bool(torch.stack(sums).isfinite().all()) for sums in by_device.values())


def with_slots(rows: Tensor, pooled: Tensor, slots: Tensor) -> Tensor:
    """The rows, followed by those of `pooled` at `slots`. Unlike `torch.cat`, copies each once."""
    both = rows.new_empty(len(rows) + len(slots), rows.shape[1])
    both[: len(rows)] = rows
    torch.index_select(pooled, 0, slots, out=both[len(rows) :])
    return both


class KeyValueCache:
    """A model's prefix cache: keys and values of tokens computed before, in at most `num_bytes`. Not thread-safe."""

    def __init__(self, num_bytes: int, bytes_per_token: int) -> None:
        self._bytes_per_token = bytes_per_token
        self.page_bytes = PAGE_TOKENS * bytes_per_token + PAGE_OVERHEAD_BYTES
        self.prefixes = PrefixCache(num_bytes // self.page_bytes)
        self._pool = KeyValuePool(self.prefixes.num_pages)

    @property
    def max_bytes(self) -> int:
        return self.prefixes.num_pages * self.page_bytes

    def empty_copy(self) -> "KeyValueCache":
        """An empty cache of the same size and settings. Its memory is allocated at first use."""
        copy = KeyValueCache(self.max_bytes, self._bytes_per_token)
        copy.prefixes.min_prefix_tokens = self.prefixes.min_prefix_tokens
        return copy

    def halve(self) -> None:
        """Empties the cache, frees its memory and halves its size from now on."""
        num_pages = self.prefixes.num_pages // 2
        self.prefixes.resize(num_pages)
        self._pool = KeyValuePool(num_pages)

    def may_use(self, batch: Batch) -> bool:
        """Whether any sequence of the batch is long enough for the cache."""
        return any(self.prefixes.may_use(sequence.key) for sequence in batch.sequences)

    def reserve(self, batch: Batch) -> Reservation:
        """Reserves what the cache has of a batch and will keep of it. End with `publish` or `release` (see `PrefixCache`)."""
        return self.prefixes.reserve(keys_of(batch), batch.tree)

    def publish(self, batch: Batch, reservation: Reservation, cached_keys: CachedKeys) -> None:
        """Makes the keys and values that the batch has written available to later batches, if all are finite."""
        if not reservation.is_empty and cached_keys.are_finite():
            self.prefixes.publish(keys_of(batch), batch.tree, reservation)
        self.release(reservation)

    def release(self, reservation: Reservation) -> None:
        """Frees the reserved pages that were not published."""
        self.prefixes.release(reservation)

    def is_current(self, reservation: Reservation, batch: Batch) -> bool:
        """Whether reserving again would find no more cached tokens than `reservation` has."""
        return self.prefixes.is_current(reservation, keys_of(batch))

    def cached_keys(self, reservation: Reservation, layout: RowLayout, num_rows: int, num_keys: int) -> CachedKeys:
        return CachedKeys(self._pool, reservation, layout, num_rows, num_keys)


def keys_of(batch: Batch) -> list[bytes]:
    return [sequence.key for sequence in batch.sequences]
