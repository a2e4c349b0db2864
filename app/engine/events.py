"""The engine's events, which a `Listener` receives: one per batch, and the outcome of each request.

All times are `time.perf_counter`'s.
"""

import logging
from dataclasses import dataclass
from typing import Literal, Protocol

logger = logging.getLogger(__name__)

RequestOutcome = Literal["scored", "cancelled", "failed"]
"""Of one call of `Engine.score`: `cancelled` means that the caller cancelled it, `failed` that it raised a RequestError."""


@dataclass(frozen=True, slots=True)
class Forward:
    """One model's part of a batch. It covers the sequences that got a score, finite or not."""

    model: str
    started: float
    seconds: float
    num_tokens: int
    num_computed_tokens: int
    num_cached_tokens: int  # read from the prefix cache
    num_truncated: int
    scores: list[float]


@dataclass(frozen=True, slots=True)
class BatchScored:
    """A batch that a device's thread took from its queue, and the forward passes of its models, in order."""

    device: str
    num_sequences: int
    num_tokens: int
    num_computed_tokens: int  # the largest among the models
    queue_seconds: list[float]  # of each sequence, from queued to taken
    seconds: float
    forwards: tuple[Forward, ...]


class Listener(Protocol):
    """Receives every event. What it raises is logged and affects no thread and no request."""

    def batch_scored(self, event: BatchScored) -> None:
        """Called on the device's thread, before the requests get their scores."""

    def request_ended(self, outcome: RequestOutcome) -> None:
        """Called on the event loop."""


class NullListener:
    """Ignores every event."""

    def batch_scored(self, event: BatchScored) -> None:
        pass

    def request_ended(self, outcome: RequestOutcome) -> None:
        pass


class SafeListener:
    """Passes events on to `listener`, which may be replaced at any time, and logs what it raises."""

    def __init__(self) -> None:
        self.listener: Listener = NullListener()

    def batch_scored(self, event: BatchScored) -> None:
        try:
            self.listener.batch_scored(event)
        except Exception:
            logger.exception("the event listener failed on a batch_scored event")

    def request_ended(self, outcome: RequestOutcome) -> None:
        try:
            self.listener.request_ended(outcome)
        except Exception:
            logger.exception("the event listener failed on a request_ended event")
