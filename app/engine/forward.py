"""A batch on its way through a model: prepared on the host, then computed."""

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
    """What a forward gives for a batch."""

    states: Tensor
    """(n, hidden): the states that the head reads, sequence by sequence; all tokens' where token scores are wanted.

    (sequences, k) outputs where the model's own forward applies the head.
    """
    num_computed_tokens: Sequence[int]  # per sequence, shared ones counted for the oldest
    num_cached_tokens: Sequence[int]  # per sequence


@dataclass(frozen=True, slots=True)
class Lease:
    """A batch's hold on a prefix cache: what it reads and what it is to fill."""

    cache: "KeyValueCache"
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch of which the host's part is done. `packed_row` is None on the other paths, `lease` without a cache."""

    batch: Batch
    positions: Sequence[IntArray] = ()  # per sequence, those whose states are read
    packed_row: PackedRow | None = None
    rows: IntArray | None = None  # (n,) the packed rows of the wanted states
    lease: Lease | None = None


@contextmanager
def releasing(lease: Lease | None) -> Iterator[None]:
    """Gives the lease back if the context ends with an error, even one that ends the thread."""
    try:
        yield
    except BaseException:
        if lease is not None:
            lease.cache.release(lease.reservation)
        raise
