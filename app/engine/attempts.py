"""The interface that the device thread needs of a model, and one model's forward pass of a batch, step by step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from app.engine.batch import Batch
from app.engine.forward import Computed, Prepared
from app.engine.scheduler import ScheduledBatch
from app.engine.sequence import Scored, TokenSequence
from app.engine.tokenization import Tokenization


class Model(Protocol):
    """What the engine and its threads need of a reward model."""

    name: str
    device: torch.device
    max_batch_tokens: int
    tokenization: Tokenization
    is_causal: bool

    def score(self, batch: Batch) -> list[Scored]: ...

    def num_cached_tokens(self, sequence: TokenSequence, *, token_scores: bool) -> int:
        """How many of the sequence's first tokens are in the prefix cache and need no computing."""

    def find_fault(self, sequence: TokenSequence) -> str | None:
        """Why the model cannot score the sequence, such as "has no token ..."; None if it can."""

    def shrink_cache(self) -> bool:
        """Frees the prefix cache's memory. Returns whether there was any to free."""


@runtime_checkable
class SteppedModel(Model, Protocol):
    """A model whose forward pass has steps, so that the host prepares a batch while the device computes the one before."""

    def prepare(self, batch: Batch) -> Prepared: ...

    def is_current(self, prepared: Prepared) -> bool: ...

    def launch(self, prepared: Prepared) -> Computed: ...

    def finish(self, prepared: Prepared, computed: Computed) -> list[Scored]: ...

    def abandon(self, prepared: Prepared) -> None: ...


class Attempt:
    """One model's forward pass of its jobs of a batch, step by step. An error in any step is raised by `scores`."""

    def __init__(self, model: SteppedModel, own: ScheduledBatch) -> None:
        self.own = own
        self._model = model
        self._prepared: Prepared | None = None
        self._computed: Computed | None = None
        self._error: Exception | None = None
        self._step(self._prepare)

    def launch(self) -> None:
        """Starts the computation on the device. Prepares the batch again if the one before it has changed the cache."""
        self._step(self._launch)

    def scores(self) -> list[Scored]:
        """Waits for the scores and returns them. Call it once."""
        if self._error is not None:
            error, self._error = self._error, None  # its traceback keeps the forward pass's tensors alive
            raise error
        assert self._prepared is not None
        assert self._computed is not None
        try:
            return self._model.finish(self._prepared, self._computed)
        finally:
            self.abandon()  # does nothing after a success

    def abandon(self) -> None:
        """Releases what the attempt holds. Call it if `scores` will not be called."""
        if self._prepared is not None:
            self._model.abandon(self._prepared)
        self._prepared = self._computed = self._error = None

    def _step(self, step: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            step()
        except Exception as error:  # noqa: BLE001 - raised by `scores`
            self.abandon()
            self._error = error

    def _prepare(self) -> None:
        self._prepared = self._model.prepare(self.own.batch)

    def _launch(self) -> None:
        assert self._prepared is not None
        if not self._model.is_current(self._prepared):
            self._model.abandon(self._prepared)
            self._prepared = self._model.prepare(self.own.batch)
        self._computed = self._model.launch(self._prepared)


@dataclass(slots=True)
class PreparedBatch:
    """A batch taken from the queue, with one attempt per model that is a SteppedModel."""

    scheduled: ScheduledBatch
    attempts: dict[str, Attempt] = field(default_factory=dict)

    def abandon(self) -> None:
        for attempt in self.attempts.values():
            attempt.abandon()
