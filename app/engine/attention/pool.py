"""The keys and values of cached tokens, layer by layer, and what one batch reads from them and adds to them."""

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
"""What a page's token ids and its place in the tree take beside its keys and values."""


class KeyValuePool:
    """For each layer the keys and the values of every slot, (slots, heads * dim) each. Allocated at the first use."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._layers: list[tuple[Tensor, Tensor]] = []

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The slots of a layer; the given rows say of what width, type and device they are."""
        if index == len(self._layers):
            slots = self.num_pages * PAGE_TOKENS
            self._layers.append((keys.new_empty(slots, keys.shape[1]), values.new_empty(slots, values.shape[1])))
        return self._layers[index]


class OnDevices:
    """Indices that the layers of a model read on their devices: copied to each once."""

    def __init__(self, values: IntArray) -> None:
        self._values = values
        self._by_device: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._by_device:
            self._by_device[device] = upload(self._values, device)
        return self._by_device[device]


class CachedKeys:
    """One batch's use of the pool. Each layer calls `extend` once, in the order of the layers."""

    def __init__(
        self, pool: KeyValuePool, reservation: Reservation, layout: RowLayout, num_rows: int, num_keys: int
    ) -> None:
        self._pool = pool
        self._num_layers = 0
        self._num_cached = len(layout.cached)
        slots = reservation.slots[layout.cached]
        # Padding repeats a cached key: no query sees it, but 0 times an infinity would not be 0.
        slots = np.pad(slots, (0, num_keys - num_rows - len(slots)), mode="edge") if len(slots) else slots
        self._slots = OnDevices(slots)  # (keys - rows,) to read
        self._num_filled = len(reservation.filled_slots)
        self._filled_rows = OnDevices(layout.key_rows(reservation.filled_rows, num_rows))  # (filled,)
        self._filled_slots = OnDevices(reservation.filled_slots)  # (filled,)
        self._sums: list[Tensor] = []  # of what is to be kept, per layer

    def upload(self, device: torch.device) -> None:
        """Copies the indices now, not when the first layer asks for them."""
        for indices in (self._slots, self._filled_rows, self._filled_slots):
            indices.on(device)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the cached tokens' keys and values behind the given ones, and copies what is to be kept to the pool.

        In: (1, heads, rows, dim), out: (1, heads, keys, dim).
        """
        keys, values = by_token(key[0]), by_token(value[0])  # (rows, heads * dim)
        pooled = self._pool.layer(self._num_layers, keys, values)
        self._num_layers += 1
        both = []
        for rows, slots, given in zip((keys, values), pooled, (key, value), strict=True):
            extended = torch.cat([rows, slots[self._slots.on(rows.device)]]) if self._num_cached else rows
            if self._num_filled:
                filled = extended.index_select(0, self._filled_rows.on(rows.device))
                slots.index_copy_(0, self._filled_slots.on(rows.device), filled)
                self._sums.append(filled.sum(dtype=torch.float32))
            both.append(extended.view(1, len(extended), given.shape[1], given.shape[3]).transpose(1, 2))
        return both[0], both[1]

    def are_finite(self) -> bool:
        """Whether nothing of what is to be kept is NaN or infinite, by the sums. Waits for each device once."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for total in self._sums:
            by_device.setdefault(total.device, []).append(total)
        return all(bool(torch.stack(sums).isfinite().all()) for sums in by_device.values())


class KeyValueCache:
    """A model's prefix cache: the keys and values of what it computed before, in at most `num_bytes`. Not thread-safe."""

    def __init__(self, num_bytes: int, bytes_per_token: int) -> None:
        self._bytes_per_token = bytes_per_token
        self.page_bytes = PAGE_TOKENS * bytes_per_token + PAGE_OVERHEAD_BYTES
        self.prefixes = PrefixCache(num_bytes // self.page_bytes)
        self._pool = KeyValuePool(self.prefixes.num_pages)

    @property
    def max_bytes(self) -> int:
        return self.prefixes.num_pages * self.page_bytes

    def empty_copy(self) -> "KeyValueCache":
        """A cache of the same size and rules, whose memory is allocated when it is first used."""
        copy = KeyValueCache(self.max_bytes, self._bytes_per_token)
        copy.prefixes.min_prefix_tokens = self.prefixes.min_prefix_tokens
        return copy

    def halve(self) -> None:
        """Forgets everything, gives the memory back and takes half of it at most from now on."""
        num_pages = self.prefixes.num_pages // 2
        self.prefixes.resize(num_pages)
        self._pool = KeyValuePool(num_pages)

    def may_use(self, batch: Batch) -> bool:
        """Whether any sequence of the batch is long enough for the cache."""
        return any(self.prefixes.may_use(sequence.key) for sequence in batch.sequences)

    def reserve(self, batch: Batch) -> Reservation:
        """What the cache has of a batch and will keep of it. `publish` or `release` comes next (see `PrefixCache`)."""
        return self.prefixes.reserve(keys_of(batch), batch.tree)

    def publish(self, batch: Batch, reservation: Reservation, cached_keys: CachedKeys) -> None:
        """Keeps what the batch's forward has added, if all of it is finite.

        A key that is not finite may come from another sequence, which does not count for those to come.
        """
        if not reservation.is_empty and cached_keys.are_finite():
            self.prefixes.publish(keys_of(batch), batch.tree, reservation)
        self.release(reservation)

    def release(self, reservation: Reservation) -> None:
        """Gives back what was reserved and is not published."""
        self.prefixes.release(reservation)

    def is_current(self, reservation: Reservation, batch: Batch) -> bool:
        """Whether to reserve for the batch anew would find nothing more."""
        return self.prefixes.is_current(reservation, keys_of(batch))

    def cached_keys(self, reservation: Reservation, layout: RowLayout, num_rows: int, num_keys: int) -> CachedKeys:
        return CachedKeys(self._pool, reservation, layout, num_rows, num_keys)


def keys_of(batch: Batch) -> list[bytes]:
    return [sequence.key for sequence in batch.sequences]
