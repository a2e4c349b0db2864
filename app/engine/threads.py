"""The two kinds of threads: one that tokenizes, and one a device that owns its models. Neither dies of a bad batch."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from math import isfinite
from time import perf_counter
from typing import Generic, Protocol, TypeVar

import torch

from app.engine.events import BatchScored, Forward, Listener
from app.engine.refusals import one_line
from app.engine.scheduler import Job, Scheduler
from app.engine.sequence import Scored, Sequence
from app.engine.tokenization import Tokenization
from app.errors import InferenceFailedError, RequestError

logger = logging.getLogger(__name__)
R = TypeVar("R")


class Model(Protocol):
    """What the threads and the engine need of a reward model."""

    name: str
    device: torch.device
    max_batch_tokens: int
    tokenization: Tokenization
    is_causal: bool

    def score(self, sequences: Many[Sequence], token_scores: Many[bool]) -> list[Scored]: ...


Outcome = tuple[Job, str, Scored | RequestError]
"""What one model made of one job."""


class TokenizerThread(threading.Thread, Generic[R]):
    """Calls `tokenize` with the requests that have inputs left, all at once, until none has; then waits for more.

    `tokenize` returns those that are not finished, `fail` hears of the requests that it raised for.
    """

    def __init__(self, tokenize: Callable[[list[R]], list[R]], fail: Callable[[list[R], Exception], None]) -> None:
        super().__init__(name="tokenizer", daemon=True)
        self._tokenize = tokenize
        self._fail = fail
        self._requests: deque[R] = deque()
        self._changed = threading.Condition()
        self._stopped = False

    @property
    def num_waiting(self) -> int:
        return len(self._requests)

    def submit(self, requests: list[R]) -> None:
        with self._changed:
            self._requests.extend(requests)
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        while requests := self._take():
            try:
                unfinished = self._tokenize(requests)
            except Exception as error:
                logger.exception("tokenizing failed for %d requests", len(requests))
                self._fail(requests, error)
            else:
                with self._changed:
                    self._requests.extend(unfinished)

    def _take(self) -> list[R]:
        with self._changed:
            while not self._requests and not self._stopped:
                self._changed.wait()
            requests = [] if self._stopped else list(self._requests)
            self._requests.clear()
            return requests


class DeviceThread(threading.Thread):
    """Computes what its scheduler gives it, with the models of one device, and hands the outcomes to `deliver`."""

    def __init__(
        self,
        models: Many[Model],
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
        self.scheduler = Scheduler(max_batch_tokens, max_queue_tokens or 64 * max_batch_tokens)
        self._num_threads = num_threads
        self._deliver = deliver
        self._listener = listener

    def stop(self) -> None:
        self.scheduler.close()

    def run(self) -> None:
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)
        batch: list[Job] = []
        try:
            while batch := self.scheduler.take():
                self._compute(batch)
        except BaseException as fault:  # nobody is above a thread: it is logged, and the engine says it is dead
            why = one_line(fault)
            logger.exception("the model thread has died: %s", why)
        finally:
            left = [job for job in [*batch, *self.scheduler.close()] if not job.ticket.cancelled]
            error = InferenceFailedError("the model thread has died; the service must be restarted")
            self._deliver([(job, name, error) for job in left for name in job.models], None)

    def _compute(self, batch: list[Job]) -> None:
        outcomes: list[Outcome] = []
        forwards: list[Forward] = []
        begun = perf_counter()
        for model in self.models.values():
            started = perf_counter()
            if own := score_with(model, batch):
                outcomes += own
                forwards.append(forward_of(model.name, started, own))
        event = batch_event(self._device, begun, batch, forwards)
        self._listener.batch_scored(event)
        self._deliver(outcomes, event)


def forward_of(model: str, started: float, outcomes: list[Outcome]) -> Forward:
    """What the model did between `started` and now."""
    seconds = perf_counter() - started
    scored = [(job, result.score) for job, _, result in outcomes if isinstance(result, Scored)]
    return Forward(
        model,
        started,
        seconds,
        sum(job.sequence.num_tokens for job, _ in scored),
        sum(job.num_new_tokens for job, _ in scored),
        sum(job.sequence.truncated for job, _ in scored),
        [score for _, score in scored],
    )


def batch_event(device: str, started: float, batch: list[Job], forwards: list[Forward]) -> BatchScored:
    return BatchScored(
        device,
        len(batch),
        sum(job.sequence.num_tokens for job in batch),
        sum(job.num_new_tokens for job in batch),
        [job.taken_at - job.queued_at for job in batch],
        perf_counter() - started,
        tuple(forwards),
    )


def score_with(model: Model, batch: Many[Job]) -> list[Outcome]:
    """One model's outcomes for those of the batch that want it; whatever it raises fails these jobs only."""
    jobs = [job for job in batch if model.name in job.models and not job.ticket.cancelled]
    if not jobs:
        return []
    scored: Many[Scored] = ()
    try:
        scored = model.score([job.sequence for job in jobs], [job.token_scores for job in jobs])
    except Exception as error:
        if not is_out_of_memory(error) or len(jobs) == 1:
            why = one_line(error)  # of a forward, which knows no text: that may be said
            logger.exception("the %s model failed a batch of %d sequences: %s", model.name, len(jobs), why)
            failed = InferenceFailedError(f"the {model.name} model failed: {why}")
            return [(job, model.name, failed) for job in jobs]
    if not scored:  # not sooner: the error's traceback holds the tensors of the forward that failed
        logger.warning("out of memory with %d sequences: trying again in halves", len(jobs))
        free_memory(model.device)
        half = len(jobs) // 2
        return [*score_with(model, jobs[:half]), *score_with(model, jobs[half:])]
    if len(jobs) > 1 and (odd := [job for job, result in zip(jobs, scored, strict=True) if not isfinite(result.score)]):
        # A masked key weighs 0, and 0 times infinity is NaN: only alone does a score say that it is its own fault.
        sound = [(job, model.name, result) for job, result in zip(jobs, scored, strict=True) if isfinite(result.score)]
        return [*sound, *(outcome for job in odd for outcome in score_with(model, [job]))]
    return [(job, model.name, result) for job, result in zip(jobs, scored, strict=True)]


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may succeed: torch's own error on a GPU, the allocator's words on a CPU."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in words or "not enough memory" in words)
    )


def free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
