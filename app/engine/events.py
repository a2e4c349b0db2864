"""What the engine tells of its work: one event a batch, one a request, to one `Listener`. Knows nothing of who listens.

All times are `time.perf_counter`'s.
"""

import logging
from dataclasses import dataclass
from typing import Literal, Protocol

logger = logging.getLogger(__name__)

RequestOutcome = Literal["scored", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Forward:
    """One model's part of a batch: the sequences that it gave a score, finite or not."""

    model: str
    started: float
    seconds: float
    num_tokens: int
    num_computed_tokens: int
    num_cached_tokens: int  # that an earlier batch left in the prefix cache
    num_truncated: int
    scores: list[float]


@dataclass(frozen=True, slots=True)
class BatchScored:
    """What a device's thread took from its queue at once, and what its models made of it, one after the other."""

    device: str
    num_sequences: int
    num_tokens: int
    num_computed_tokens: int  # by the model that computed most
    queue_seconds: list[float]  # of each sequence, from queued to taken
    seconds: float
    forwards: tuple[Forward, ...]


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """One call of `Engine.score`. `cancelled` means that its caller left, `failed` that it raised a RequestError."""

    outcome: RequestOutcome
    num_items: int
    seconds: float


class Listener(Protocol):
    """Hears of every event. What it raises is logged, and disturbs neither a thread nor a request."""

    def batch_scored(self, event: BatchScored) -> None:
        """On the device's own thread, before the requests have their scores."""

    def request_ended(self, event: RequestEnded) -> None:
        """On the event loop."""


class NullListener:
    """The listener where nobody listens."""

    def batch_scored(self, event: BatchScored) -> None:
        pass

    def request_ended(self, event: RequestEnded) -> None:
        pass


class SafeListener:
    """A listener that may be exchanged at any time, and whose faults end here."""

    def __init__(self) -> None:
        self.listener: Listener = NullListener()

    def batch_scored(self, event: BatchScored) -> None:
        try:
            self.listener.batch_scored(event)
        except Exception:
            logger.exception("a listener failed over a batch")

    def request_ended(self, event: RequestEnded) -> None:
        try:
            self.listener.request_ended(event)
        except Exception:
            logger.exception("a listener failed over a request")
