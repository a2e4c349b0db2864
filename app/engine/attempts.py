"""What the threads need of a model, and a model's forward of a batch in steps."""

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
    """What the threads and the engine need of a reward model."""

    name: str
    device: torch.device
    max_batch_tokens: int
    tokenization: Tokenization
    is_causal: bool

    def score(self, batch: Batch) -> list[Scored]: ...

    def num_cached_tokens(self, sequence: TokenSequence, *, token_scores: bool) -> int:
        """The first tokens of the sequence that the model need not compute now."""

    def find_fault(self, sequence: TokenSequence) -> str | None:
        """Why the model cannot score the sequence, such as "has no token ..."; None where it can."""

    def shrink_cache(self) -> bool:
        """Frees what memory it can; whether there was any to free."""


@runtime_checkable
class SteppedModel(Model, Protocol):
    """A model whose forward has steps, so that the next batch is prepared while the device computes this one."""

    def prepare(self, batch: Batch) -> Prepared: ...

    def is_current(self, prepared: Prepared) -> bool: ...

    def launch(self, prepared: Prepared) -> Computed: ...

    def finish(self, prepared: Prepared, computed: Computed) -> list[Scored]: ...

    def abandon(self, prepared: Prepared) -> None: ...


class Attempt:
    """One model's forward of its jobs of a batch, step by step. What a step raises, `scores` raises."""

    def __init__(self, model: SteppedModel, own: ScheduledBatch) -> None:
        self.own = own
        self._model = model
        self._prepared: Prepared | None = None
        self._computed: Computed | None = None
        self._error: Exception | None = None
        self._step(self._prepare)

    def launch(self) -> None:
        """Has the device begin. What was prepared before the batch ahead was finished may have to be prepared anew."""
        self._step(self._launch)

    def scores(self) -> list[Scored]:
        """Waits for the scores. May be called once."""
        if self._error is not None:
            error, self._error = self._error, None  # its traceback holds the tensors of the forward
            raise error
        assert self._prepared is not None
        assert self._computed is not None
        try:
            return self._model.finish(self._prepared, self._computed)
        finally:
            self.abandon()  # where it succeeded, there is nothing left to give back

    def abandon(self) -> None:
        """Gives back what is held, where `scores` will not be called."""
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
    """A batch that was taken from the queue, and the attempts at it; none where the models have no steps."""

    scheduled: ScheduledBatch
    attempts: dict[str, Attempt] = field(default_factory=dict)

    def abandon(self) -> None:
        for attempt in self.attempts.values():
            attempt.abandon()
