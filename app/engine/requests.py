"""A call of `Engine.score` while it runs, and its result. Knows neither threads nor models."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from app.engine.events import BatchScored
from app.engine.inputs import Input, Truncation
from app.engine.scheduler import Job, Ticket
from app.engine.sequence import Scored, Steps
from app.engine.text_tokens import LONG_CHARS
from app.errors import NonFiniteScoreError, RequestError

MAX_SLICE_INPUTS, MAX_SLICE_CHARS = 32, 65_536
"""The limits of a slice: how much of one request is tokenized before the next. A long input is a slice of its own."""


@dataclass(frozen=True, slots=True)
class ItemScore:
    """One model's result for one input."""

    score: float
    num_tokens: int
    truncated: bool
    token_scores: list[float] | None
    num_cached_tokens: int = 0
    steps: Steps | None = None
    is_probability: bool = False  # the head outputs probabilities, so no sigmoid must be applied


@dataclass(slots=True)
class Times:
    """When a request's stages began and ended, by `time.perf_counter`, and the batches that contained its sequences."""

    submitted: float = field(default_factory=perf_counter)
    first_queued: float = math.inf  # the first of its sequences
    last_queued: float = 0.0
    last_taken: float = 0.0
    queue_seconds: float = 0.0  # the longest wait of a sequence
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
    """A request's result: one score per input and model, and the numbers of all, computed and cached tokens."""

    items: list[dict[str, ItemScore]]
    num_tokens: int
    num_computed_tokens: int
    num_cached_tokens: int = 0
    times: Times = field(default_factory=Times)


class Request(Ticket):
    """A running call of `Engine.score`. Only the event loop changes its results, only the tokenizer thread its cursor."""

    def __init__(
        self,
        inputs: Sequence[Input],
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
        self.num_cached_tokens = 0
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
        if not scored.is_finite:
            item = self.inputs[job.slot]
            given = scored.score if scored.steps is None else scored.steps.scores
            self.fail(NonFiniteScoreError(f"{item.location}: the {model} model gives it {given}", item.item))
            return
        if batch is not None:
            self.times.add(job, batch)
        sequence = job.sequence
        self.items[job.slot][model] = ItemScore(
            scored.score,
            sequence.num_tokens,
            sequence.truncated,
            scored.token_scores,
            scored.num_cached_tokens,
            scored.steps,
            scored.is_probability,
        )
        self.num_tokens += sequence.num_tokens
        self.num_computed_tokens += scored.num_computed_tokens
        self.num_cached_tokens += scored.num_cached_tokens
        self.num_missing -= 1
        if not self.num_missing:
            counts = (self.num_tokens, self.num_computed_tokens, self.num_cached_tokens)
            self.future.set_result(Scores(self.items, *counts, self.times))


def is_next_long(request: Request) -> bool:
    """Whether the next input to be tokenized is a long text."""
    return request.inputs[request.cursor].num_chars > LONG_CHARS


def next_slice(request: Request) -> range:
    """The next inputs of the request to tokenize: a single long one, or short ones within the limits of a slice."""
    stop = request.cursor + 1
    if stop == len(request.inputs):  # the last one
        return range(request.cursor, stop)
    num_chars = request.inputs[request.cursor].num_chars
    if num_chars > LONG_CHARS:
        return range(request.cursor, stop)
    while stop < min(request.cursor + MAX_SLICE_INPUTS, len(request.inputs)):
        following = request.inputs[stop].num_chars
        num_chars += following
        if following > LONG_CHARS or num_chars > MAX_SLICE_CHARS:
            break
        stop += 1
    return range(request.cursor, stop)


def fail_all(requests: Sequence[Request], error: Exception) -> None:
    for request in requests:
        request.fail(error)
