"""The thread of a device, which owns the device's models and computes batches. A failed batch does not end it."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter

import torch

from app.engine.abandonment import AbandonedError, abandoned_when
from app.engine.attempts import Attempt, Model, PreparedBatch, SteppedModel
from app.engine.devices import DeviceLostError, free_memory, is_lost, is_out_of_memory
from app.engine.events import BatchScored, Forward, Listener
from app.engine.scheduler import Job, ScheduledBatch, Scheduler
from app.engine.sequence import Scored
from app.errors import InferenceFailedError, RequestError, one_line

logger = logging.getLogger(__name__)


Outcome = tuple[Job, str, Scored | RequestError]
"""A job, the model's name, and its score or error."""


class DeviceThread(threading.Thread):
    """Computes its scheduler's batches with the models of one device, and passes the outcomes to `deliver`."""

    def __init__(
        self,
        models: Sequence[Model],
        *,
        max_queue_tokens: int | None,
        num_threads: int | None,
        deliver: Callable[[list[Outcome], BatchScored | None], None],
        listener: Listener,
    ) -> None:
        self._device = str(models[0].device)
        super().__init__(name=f"model-{self._device}", daemon=True)
        self.models = {model.name: model for model in models}
        max_batch_tokens = min(model.max_batch_tokens for model in models)
        # Not a method of this thread: that cycle would keep the models alive after a reload, because the heap is frozen.
        num_cached = partial(num_cached_tokens, self.models)
        self.scheduler = Scheduler(max_batch_tokens, max_queue_tokens or 64 * max_batch_tokens, num_cached)
        self._num_threads = num_threads
        self._stepped = [model for model in models if takes_steps(model.device) and isinstance(model, SteppedModel)]
        self._current: PreparedBatch | None = None
        self._next: PreparedBatch | None = None
        self._deliver = deliver
        self._listener = listener

    def stop(self) -> None:
        self.scheduler.close()

    def run(self) -> None:
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)
        try:
            while scheduled := self.scheduler.take():
                self._current = PreparedBatch(scheduled)  # for `_end`, if the thread dies
                self._prepare(self._current)
                while self._current is not None:
                    self._compute(self._current)
                    self._current, self._next = self._next, None
        except (
            BaseException
        ) as fault:  # a thread has no caller: the fault is logged, and `Engine.is_alive` becomes False
            why = one_line(fault)
            logger.exception("the model thread has died: %s", why)
        finally:
            self._end()

    def _end(self) -> None:
        """Fails the jobs that are left and releases everything that the thread holds."""
        jobs: list[Job] = []
        for batch in (self._current, self._next):
            if batch is not None:
                batch.abandon()
                jobs += batch.scheduled.jobs
        self._current = self._next = None
        left = [job for job in [*jobs, *self.scheduler.close()] if not job.ticket.cancelled]
        error = InferenceFailedError("the model thread has died; the service must be restarted")
        self._deliver([(job, name, error) for job in left for name in job.models], None)

    def _prepare(self, batch: PreparedBatch) -> None:
        """Prepares the batch's forward passes on the host. On the CPU, the forward pass does this itself."""
        for model in self._stepped:
            if own := part_for(model, batch.scheduled):
                batch.attempts[model.name] = Attempt(model, own)

    def _compute(self, batch: PreparedBatch) -> None:
        outcomes: list[Outcome] = []
        forwards: list[Forward] = []
        begun = perf_counter()
        for attempt in batch.attempts.values():
            attempt.launch()
        if self._stepped and (scheduled := self.scheduler.take_full()):
            self._next = PreparedBatch(scheduled)
            self._prepare(self._next)
        for model in self.models.values():
            started = perf_counter()
            if own := score_with(model, batch.scheduled, batch.attempts.pop(model.name, None)):
                outcomes += own
                forwards.append(forward_of(model.name, started, own))
        event = batch_event(self._device, begun, batch.scheduled, forwards)
        self._listener.batch_scored(event)
        self._deliver(outcomes, event)


def takes_steps(device: torch.device) -> bool:
    """Whether the device computes asynchronously, so that the host can prepare the next batch meanwhile."""
    return device.type == "cuda"


def num_cached_tokens(models: Mapping[str, Model], job: Job) -> int:
    """How many first tokens of a job are cached by all of its models."""
    return min([models[name].num_cached_tokens(job.sequence, token_scores=job.token_scores) for name in job.models])


def forward_of(model: str, started: float, outcomes: list[Outcome]) -> Forward:
    """The event of a model's forward pass from `started` until now."""
    seconds = perf_counter() - started
    scored = [(job, result) for job, _, result in outcomes if isinstance(result, Scored)]
    return Forward(
        model,
        started,
        seconds,
        sum(job.sequence.num_tokens for job, _ in scored),
        sum(result.num_computed_tokens for _, result in scored),
        sum(result.num_cached_tokens for _, result in scored),
        sum(job.sequence.truncated for job, _ in scored),
        [result.score for _, result in scored],
    )


def batch_event(device: str, started: float, scheduled: ScheduledBatch, forwards: list[Forward]) -> BatchScored:
    return BatchScored(
        device,
        len(scheduled.jobs),
        scheduled.batch.num_tokens,
        max((forward.num_computed_tokens for forward in forwards), default=0),
        [job.taken_at - job.queued_at for job in scheduled.jobs],
        perf_counter() - started,
        tuple(forwards),
    )


def part_for(model: Model, scheduled: ScheduledBatch) -> ScheduledBatch | None:
    """The jobs of the batch for this model whose requests are not cancelled; None if there are none."""
    wanted = [i for i, job in enumerate(scheduled.jobs) if model.name in job.models and not job.ticket.cancelled]
    return scheduled.part(wanted) if wanted else None


def score_with(
    model: Model, scheduled: ScheduledBatch, attempt: Attempt | None = None, *, may_shrink_cache: bool = True
) -> list[Outcome]:
    """One model's outcomes for its jobs of the batch; whatever the model raises fails only these jobs.

    `attempt` must have been launched. If memory runs out, the prefix cache is emptied once, then the batch is split.
    """
    own = attempt.own if attempt is not None else part_for(model, scheduled)
    if own is None:
        return []
    jobs = own.jobs
    scored: Sequence[Scored] = ()
    cache_shrunk = False
    try:
        with abandoned_when(lambda: all(job.ticket.cancelled for job in jobs)):
            scored = attempt.scores() if attempt is not None else model.score(own.batch)
    except Exception as error:  # noqa: BLE001 - logged in `failures_of`
        is_memory = is_out_of_memory(error)
        cache_shrunk = is_memory and may_shrink_cache and model.shrink_cache()
        if not is_memory or (len(jobs) == 1 and not cache_shrunk):
            return failures_of(model, jobs, error)
    if not scored:  # after the except block: the error's traceback keeps the failed forward pass's tensors alive
        how = "with a smaller prefix cache" if cache_shrunk else "in halves"
        logger.warning("out of memory with %d sequences: trying again %s", len(jobs), how)
        free_memory(model.device)
        if cache_shrunk:
            return score_with(model, own, may_shrink_cache=False)
        return score_parts(model, own, [range(len(jobs) // 2), range(len(jobs) // 2, len(jobs))])
    outcomes: list[Outcome] = [(job, model.name, result) for job, result in zip(jobs, scored, strict=True)]
    non_finite = [i for i, result in enumerate(scored) if not result.is_finite]
    if len(jobs) == 1 or not non_finite:
        return outcomes
    # A masked key has weight 0, and 0 times infinity is NaN: computing each alone shows which sequences are at fault.
    finite = [outcome for outcome, result in zip(outcomes, scored, strict=True) if result.is_finite]
    return finite + score_parts(model, own, [[i] for i in non_finite])


def failures_of(model: Model, jobs: Sequence[Job], error: Exception) -> list[Outcome]:
    """The outcomes of a batch whose forward pass raised; none if it was abandoned.

    Raises DeviceLostError if no later batch can succeed either; this ends the thread, and /health answers 503.
    """
    if isinstance(error, AbandonedError):
        return []
    if is_lost(model.device):
        raise DeviceLostError(
            f"{model.device} cannot be used any more since a forward pass failed ({one_line(error)})"
        ) from error
    why = one_line(error)  # safe to show: the forward pass's errors contain no text of the request
    logger.error("the %s model failed a batch of %d sequences: %s", model.name, len(jobs), why, exc_info=error)
    failed = InferenceFailedError(f"the {model.name} model failed: {why}")
    return [(job, model.name, failed) for job in jobs]


def score_parts(model: Model, scheduled: ScheduledBatch, parts: Sequence[Sequence[int]]) -> list[Outcome]:
    """The outcomes of parts of a batch, each computed in its own forward pass."""
    return [outcome for part in parts for outcome in score_with(model, scheduled.part(part), may_shrink_cache=False)]
