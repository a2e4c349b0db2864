"""The engine: one call, `Engine.score`, behind which everything else lives.

Three kinds of threads, each the owner of its state. The caller's event loop owns the requests and only awaits futures;
one thread tokenizes, in batches, a slice of each request at a time; one thread a device owns that device's models and
computes what its `Scheduler` gives it. An exception fails the jobs of its batch, never a thread; a thread that dies all
the same fails what it had and `is_alive` says so.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from time import perf_counter
from typing import Generic, TypeVar

import torch

from app.alarms import Alarms
from app.engine.events import BatchScored, Guarded, RequestEnded, RequestOutcome
from app.engine.scheduler import Job, Ticket
from app.engine.sequence import Scored, Sequence
from app.engine.threads import DeviceThread, Model, Outcome, TokenizerThread
from app.engine.tokenization import Input, TokenIds, Truncation
from app.errors import (
    DeadlineExceededError,
    InferenceFailedError,
    InvalidInputError,
    NonFiniteScoreError,
    OverloadedError,
    RequestError,
    ShuttingDownError,
)

DEAD = "the model thread has died; the service must be restarted"
M = TypeVar("M", bound=Model)
TOKENIZE_SLICE = 32
"""Inputs of one request that are tokenized before it is the next one's turn."""


@dataclass(frozen=True, slots=True)
class ItemScore:
    """What one model says of one input."""

    score: float
    num_tokens: int
    truncated: bool
    token_scores: list[float] | None


@dataclass(slots=True)
class Times:
    """When a request's parts began and ended, by `time.perf_counter`, and the batches that it was part of."""

    submitted: float = field(default_factory=perf_counter)
    first_queued: float = math.inf  # of its sequences
    last_queued: float = 0.0
    last_taken: float = 0.0
    queue_seconds: float = 0.0  # the longest that a sequence waited
    batches: list[BatchScored] = field(default_factory=list)

    def add(self, job: Job, batch: BatchScored) -> None:
        if not self.batches or self.batches[-1] is not batch:
            self.batches.append(batch)
        self.first_queued = min(self.first_queued, job.queued_at)
        self.last_queued = max(self.last_queued, job.queued_at)
        self.last_taken = max(self.last_taken, job.taken_at)
        self.queue_seconds = max(self.queue_seconds, job.taken_at - job.queued_at)


@dataclass(frozen=True, slots=True)
class Scores:
    """A request's answer: per input and model, and the tokens that went in and that were computed."""

    items: list[dict[str, ItemScore]]
    num_tokens: int
    num_computed_tokens: int
    times: Times = field(default_factory=Times)


class Request(Ticket):
    """One call of `Engine.score` on its way. Its results belong to the event loop, its cursor to the tokenizer."""

    def __init__(
        self,
        inputs: Many[Input],
        models: tuple[str, ...],
        truncation: Truncation,
        token_scores: bool,
        future: asyncio.Future[Scores],
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.models = models
        self.truncation = truncation
        self.token_scores = token_scores
        self.future = future
        self.cursor = 0
        self.items: list[dict[str, ItemScore]] = [{} for _ in inputs]
        self.num_missing = len(inputs) * len(models)
        self.num_tokens = 0
        self.num_computed_tokens = 0
        self.times = Times()

    def fail(self, error: Exception) -> None:
        self.cancelled = True
        if not self.future.done():
            self.future.set_exception(error)

    def record(self, job: Job, model: str, scored: Scored | RequestError, batch: BatchScored | None) -> None:
        if self.future.done():
            return
        if isinstance(scored, RequestError):
            self.fail(scored)
            return
        if not math.isfinite(scored.score):
            place = self.inputs[job.slot]
            self.fail(NonFiniteScoreError(f"{place.place}: the {model} model gives it {scored.score}", place.item))
            return
        if batch is not None:
            self.times.add(job, batch)
        sequence = job.sequence
        self.items[job.slot][model] = ItemScore(
            scored.score, sequence.num_tokens, sequence.truncated, scored.token_scores
        )
        self.num_tokens += sequence.num_tokens
        self.num_computed_tokens += job.num_new_tokens
        self.num_missing -= 1
        if not self.num_missing:
            self.future.set_result(Scores(self.items, self.num_tokens, self.num_computed_tokens, self.times))


class Engine(Generic[M]):
    """Scores inputs with the models that are loaded. `start` before the first call, on the event loop that calls."""

    def __init__(
        self,
        models: Mapping[str, M],
        *,
        max_queue_tokens: int | None = None,
        max_waiting_requests: int = 8192,
        num_threads: int | None = None,
    ) -> None:
        self.models = dict(models)
        self.max_waiting_requests = max_waiting_requests
        self.events = Guarded()
        self._vocabularies = {name: model.tokenization.fingerprint for name, model in self.models.items()}
        self._tokenizations = {self._vocabularies[name]: model.tokenization for name, model in self.models.items()}
        self.devices = {
            device: DeviceThread(
                [model for model in self.models.values() if model.device == device],
                max_queue_tokens=max_queue_tokens,
                num_threads=num_threads,
                deliver=self._deliver,
                listener=self.events,
            )
            for device in dict.fromkeys(model.device for model in self.models.values())
        }
        self._tokenizer = TokenizerThread(self._tokenize_slice, self._fail_requests)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._live: set[Request] = set()
        self._new: list[Request] = []  # of this turn of the event loop
        self._deadlines: dict[float, Alarms[Request]] = {}  # by their seconds, of which there are few
        self._closed = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for thread in self._threads():
            thread.start()

    def refuse_all(self) -> None:
        """Whoever still waits, or comes, gets ShuttingDownError. On the event loop."""
        self._closed = True
        for request in list(self._live):
            request.fail(ShuttingDownError("the service is shutting down; retry elsewhere"))

    def close(self) -> None:
        """Stops the threads after the batches that they are in; blocks until they have. Call refuse_all first."""
        self._closed = True
        for thread in self._threads():
            thread.stop()
        for thread in self._threads():
            thread.join()

    async def close_when_done(self) -> None:
        """Lets the requests that it has come to their answers, then stops the threads and gives up the models.

        Nobody may call `score` any more.
        """
        if self._live:
            await asyncio.wait([request.future for request in self._live])
        await asyncio.to_thread(self.close)
        # The threads know the engine: a cycle, which the collector never sees once the service has frozen the heap.
        self.models, self.devices, self._tokenizations = {}, {}, {}

    @property
    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads())

    def _threads(self) -> list[DeviceThread | TokenizerThread[Request]]:
        return [self._tokenizer, *self.devices.values()]

    async def score(
        self,
        inputs: Many[Input],
        *,
        models: tuple[str, ...] | None = None,
        truncation: Truncation = "error",
        token_scores: bool = False,
        deadline_seconds: float | None = None,
    ) -> Scores:
        """The scores of at least one input by the models named, by default all; in the order of the inputs.

        Raises a RequestError: of the input that deserves it, of the queue, the deadline or the model. A call that is
        cancelled leaves the queue before it costs tokens.
        """
        assert self._loop is not None, "start the engine first"
        if self._closed:
            raise ShuttingDownError("the service is shutting down; retry elsewhere")
        if not self.is_alive:
            raise InferenceFailedError(DEAD)
        models = models if models is not None else tuple(self.models)
        self._refuse(inputs, models, token_scores)
        future: asyncio.Future[Scores] = self._loop.create_future()
        request = Request(inputs, models, truncation, token_scores, future)
        self._live.add(request)
        outcome: RequestOutcome = "failed"
        deadlines = self._deadlines_after(deadline_seconds) if deadline_seconds is not None else None
        if deadlines is not None:
            deadlines.set(request)
        self._submit(request)
        try:
            scores = await future
            outcome = "scored"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            request.cancelled = True
            if deadlines is not None:
                deadlines.clear(request)
            self._live.discard(request)
            seconds = perf_counter() - request.times.submitted
            self.events.request_ended(RequestEnded(outcome, len(inputs), seconds))
        return scores

    def _submit(self, request: Request) -> None:
        """All requests of one turn of the event loop at once: to wake the tokenizer for each costs as much as its work."""
        if not self._new:
            assert self._loop is not None
            self._loop.call_soon(self._submit_new)
        self._new.append(request)

    def _submit_new(self) -> None:
        new, self._new = self._new, []
        self._tokenizer.submit(new)

    def _deadlines_after(self, seconds: float) -> Alarms[Request]:
        if seconds not in self._deadlines:
            late = f"no answer within the deadline of {seconds:g} s; send less at once, or raise the deadline"
            self._deadlines[seconds] = Alarms(seconds, lambda request: request.fail(DeadlineExceededError(late)))
        return self._deadlines[seconds]

    def _refuse(self, inputs: Many[Input], models: tuple[str, ...], token_scores: bool) -> None:
        num_waiting = len(self._new) + self._tokenizer.num_waiting
        num_waiting += sum(device.scheduler.num_waiting_requests for device in self.devices.values())
        if num_waiting >= self.max_waiting_requests:
            raise OverloadedError(f"{num_waiting} requests wait for room in the queue; retry later")
        for name in models:
            if token_scores and not self.models[name].is_causal:
                raise InvalidInputError(f"token_scores needs a causal model, and the {name} model is none")
        if len({self._vocabularies[name] for name in models}) > 1:
            for item in inputs:
                if isinstance(item.form, TokenIds):
                    raise InvalidInputError(
                        f"{item.place} has input_ids, which mean different tokens to {' and '.join(models)}; name one model",
                        item.item,
                    )

    def _tokenize_slice(self, requests: list[Request]) -> list[Request]:
        """Tokenizes the next inputs of each request, in one batch where they agree, and queues them.

        Returns the requests that have inputs left.
        """
        requests = [request for request in requests if not request.cancelled]
        slices = [(r, range(r.cursor, min(r.cursor + TOKENIZE_SLICE, len(r.inputs)))) for r in requests]
        jobs: dict[torch.device, list[Job]] = {device: [] for device in self.devices}
        failed: list[tuple[Request, RequestError]] = []
        for vocabulary, tokenization in self._tokenizations.items():
            for truncation in dict.fromkeys(request.truncation for request in requests):
                chosen = [
                    (request, named, slot)
                    for request, slots in slices
                    if request.truncation == truncation and (named := self._names(request.models, vocabulary))
                    for slot in slots
                ]
                outcomes = tokenization.encode([request.inputs[slot] for request, _, slot in chosen], truncation)
                for (request, named, slot), outcome in zip(chosen, outcomes, strict=True):
                    if isinstance(outcome, Sequence):
                        for device, names in named.items():
                            jobs[device].append(Job(request, slot, outcome, names, vocabulary, request.token_scores))
                    else:
                        failed.append((request, outcome))
        for request, slots in slices:
            request.cursor = slots.stop
        for request, error in failed:
            self._fail_requests([request], error)
        for device, own in jobs.items():
            if not self.devices[device].scheduler.submit(own):
                self._fail_requests([job.ticket for job in own], InferenceFailedError(DEAD))
        wrong = {request for request, _ in failed}
        return [request for request in requests if request.cursor < len(request.inputs) and request not in wrong]

    def _names(self, models: tuple[str, ...], vocabulary: str) -> dict[torch.device, tuple[str, ...]]:
        """By device, those of the models that read this vocabulary."""
        named: dict[torch.device, tuple[str, ...]] = {}
        for name in models:
            if self._vocabularies[name] == vocabulary:
                device = self.models[name].device
                named[device] = (*named.get(device, ()), name)
        return named

    def _fail_requests(self, requests: Many[Ticket], error: Exception) -> None:
        self._on_loop(fail_all, requests, error)

    def _deliver(self, outcomes: list[Outcome], batch: BatchScored | None) -> None:
        self._on_loop(record_all, outcomes, batch)

    def _on_loop(self, function: Callable[..., None], *args: object) -> None:
        """From any thread: requests change on the event loop alone."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)


def fail_all(requests: Many[Request], error: Exception) -> None:
    for request in requests:
        request.fail(error)


def record_all(outcomes: list[Outcome], batch: BatchScored | None) -> None:
    for job, model, scored in outcomes:
        assert isinstance(job.ticket, Request)
        job.ticket.record(job, model, scored, batch)
