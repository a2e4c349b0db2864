"""The stages of a batch's forward pass: prepared on the host, then computed on the device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from app.engine.attention.interface import PackedRow
from app.engine.batch import Batch
from app.engine.prefix_cache import Reservation
from app.engine.prefix_tree import IntArray

if TYPE_CHECKING:
    from app.engine.attention.pool import KeyValueCache


@dataclass(frozen=True, slots=True)
class Computed:
    """The result of a batch's forward pass."""

    states: Tensor
    """(n, hidden): the states that the head reads, sequence by sequence; those of all tokens if token scores are wanted.

    (sequences, k) outputs if the model's own forward applies the head.
    """
    num_computed_tokens: Sequence[int]  # per sequence; a shared token counts for the oldest
    num_cached_tokens: Sequence[int]  # per sequence


@dataclass(frozen=True, slots=True)
class Lease:
    """A batch's reservation in a prefix cache: the slots that it reads and those that it fills."""

    cache: "KeyValueCache"
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch prepared on the host. `packed_row` is None on paths without packing, `lease` without a prefix cache."""

    batch: Batch
    positions: Sequence[IntArray] = ()  # per sequence, the positions whose states the head reads
    packed_row: PackedRow | None = None
    rows: IntArray | None = None  # (n,) the packed rows of the wanted states
    lease: Lease | None = None


@contextmanager
def releasing(lease: Lease | None) -> Iterator[None]:
    """Releases the lease if the context raises anything, even an exception that ends the thread."""
    try:
        yield
    except BaseException:
        if lease is not None:
            lease.cache.release(lease.reservation)
        raise
