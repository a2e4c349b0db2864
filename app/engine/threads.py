"""The two kinds of threads: one that tokenizes, and one a device that owns its models. Neither dies of a bad batch."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from math import isfinite
from typing import Generic, Protocol, TypeVar

import torch

from app.engine.loading import one_line
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

    def submit(self, request: R) -> None:
        with self._changed:
            self._requests.append(request)
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
        deliver: Callable[[list[Outcome]], None],
    ) -> None:
        super().__init__(name=f"model-{models[0].device}", daemon=True)
        self.models = {model.name: model for model in models}
        max_batch_tokens = min(model.max_batch_tokens for model in models)
        self.scheduler = Scheduler(max_batch_tokens, max_queue_tokens or 64 * max_batch_tokens)
        self._num_threads = num_threads
        self._deliver = deliver

    def stop(self) -> None:
        self.scheduler.close()

    def run(self) -> None:
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)
        batch: list[Job] = []
        try:
            while batch := self.scheduler.take():
                self._deliver([outcome for model in self.models.values() for outcome in score_with(model, batch)])
        except BaseException:  # nobody is above a thread: it is logged, and the engine says it is dead
            logger.exception("the model thread has died")
        finally:
            left = [job for job in [*batch, *self.scheduler.close()] if not job.ticket.cancelled]
            error = InferenceFailedError("the model thread has died; the service must be restarted")
            self._deliver([(job, name, error) for job in left for name in job.models])


def score_with(model: Model, batch: Many[Job]) -> list[Outcome]:
    """One model's outcomes for those of the batch that want it; whatever it raises fails these jobs only."""
    jobs = [job for job in batch if model.name in job.models and not job.ticket.cancelled]
    if not jobs:
        return []
    try:
        scored = model.score([job.sequence for job in jobs], [job.token_scores for job in jobs])
    except Exception as error:
        if is_out_of_memory(error) and len(jobs) > 1:
            logger.warning("out of memory with %d sequences: trying again in halves", len(jobs))
            free_memory(model.device)
            half = len(jobs) // 2
            return [*score_with(model, jobs[:half]), *score_with(model, jobs[half:])]
        logger.exception("the %s model failed a batch of %d sequences", model.name, len(jobs))
        failed = InferenceFailedError(f"the {model.name} model failed: {one_line(error)}")
        return [(job, model.name, failed) for job in jobs]
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
