"""The engine, whose one entry point for scores is `Engine.score`.

There are three kinds of threads, and each owns its state. The caller's event loop owns the requests and only awaits
futures. One thread tokenizes short texts in batches, a slice of each request at a time; each long text has a thread of its
own. One thread per device owns that device's models and computes the batches of its `Scheduler`. An exception fails the
jobs of its batch, and the thread goes on. If a thread dies all the same, its jobs fail and `is_alive` is False.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import torch

from app.engine.attempts import Model
from app.engine.events import BatchScored, RequestOutcome, SafeListener
from app.engine.inputs import Input, TokenIds, Truncation
from app.engine.requests import Request, Scores, fail_all, is_next_long, next_slice
from app.engine.scheduler import Job, Ticket
from app.engine.sequence import TokenSequence
from app.engine.threads import DeviceThread, Outcome
from app.engine.timers import Timers
from app.engine.tokenizer_threads import TokenizerThread, TokenizerThreads
from app.errors import (
    DeadlineExceededError,
    InferenceFailedError,
    InvalidInputError,
    OverloadedError,
    RequestError,
    ShuttingDownError,
)

DEAD = "the model thread has died; the service must be restarted"
M = TypeVar("M", bound=Model)


class Engine(Generic[M]):
    """Scores inputs with the loaded models. Call `start` first, on the event loop that will call `score`."""

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
        self.events = SafeListener()
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
        self._tokenizer = TokenizerThreads(self._tokenize_slice, self._fail_requests, is_next_long)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._live: set[Request] = set()
        self._new: list[Request] = []  # submitted in this tick of the event loop
        self._gone: list[Request] = []  # ended without scores in this tick
        self._deadlines: dict[float, Timers[Request]] = {}  # by seconds; few different values occur
        self._closed = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for thread in self._threads():
            thread.start()

    def reject_all(self) -> None:
        """Fails all waiting and later requests with ShuttingDownError. Call it on the event loop."""
        self._closed = True
        for request in list(self._live):
            request.fail(ShuttingDownError("the service is shutting down; retry elsewhere"))

    def close(self) -> None:
        """Stops the threads after their current batches, and blocks until they have ended. Call `reject_all` first."""
        self._closed = True
        for thread in self._threads():
            thread.stop()
        for thread in self._threads():
            thread.join()

    async def close_when_done(self) -> None:
        """Finishes the requests that it has, then stops the threads and drops the models. `score` must not be called again."""
        if self._live:
            await asyncio.wait([request.future for request in self._live])
        await asyncio.to_thread(self.close)
        # Threads and engine refer to each other, a cycle that the collector never frees once the service has frozen the heap.
        self.models, self.devices, self._tokenizations = {}, {}, {}

    @property
    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads())

    def _threads(self) -> list[DeviceThread | TokenizerThread[Request]]:
        return [*self._tokenizer.threads, *self.devices.values()]

    async def score(
        self,
        inputs: Sequence[Input],
        *,
        models: tuple[str, ...] | None = None,
        truncation: Truncation = "error",
        token_scores: bool = False,
        deadline_seconds: float | None = None,
    ) -> Scores:
        """The scores of at least one input by `models` (default: all), in the order of the inputs.

        Raises a RequestError: InvalidInputError with the input's index, or the error of the queue, the deadline or the
        model. A call that fails or is cancelled leaves the queue and the count of waiting requests at once.
        """
        assert self._loop is not None, "start the engine first"
        if self._closed:
            raise ShuttingDownError("the service is shutting down; retry elsewhere")
        models = models if models is not None else tuple(self.models)
        self._reject(inputs, models, token_scores)
        future: asyncio.Future[Scores] = self._loop.create_future()
        request = Request(inputs, models, truncation, token_scores, future)
        self._live.add(request)
        outcome: RequestOutcome = "failed"
        deadlines = self._deadlines_after(deadline_seconds) if deadline_seconds is not None else None
        if deadlines is not None:
            deadlines.schedule(request)
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
                deadlines.cancel(request)
            self._live.discard(request)
            if outcome != "scored":
                self._discard(request)
            self.events.request_ended(outcome)
        return scores

    def _submit(self, request: Request) -> None:
        """Submits all requests of one event-loop tick together: waking the tokenizer for each would double its cost."""
        if not self._new:
            assert self._loop is not None
            self._loop.call_soon(self._submit_new)
        self._new.append(request)

    def _submit_new(self) -> None:
        new, self._new = self._new, []
        self._tokenizer.submit(new)

    def _discard(self, request: Request) -> None:
        """Removes it from every queue, together with all others that end in this event-loop tick."""
        if not self._gone:
            assert self._loop is not None
            self._loop.call_soon(self._discard_gone)
        self._gone.append(request)

    def _discard_gone(self) -> None:
        gone, self._gone = set(self._gone), []
        self._new = [request for request in self._new if request not in gone]
        self._tokenizer.discard(gone)
        for device in self.devices.values():
            device.scheduler.discard(gone)

    def _deadlines_after(self, seconds: float) -> Timers[Request]:
        if seconds not in self._deadlines:
            late = (
                f"no answer within the deadline of {seconds:g} s; send fewer or shorter inputs, or raise the deadline"
            )
            self._deadlines[seconds] = Timers(seconds, lambda request: request.fail(DeadlineExceededError(late)))
        return self._deadlines[seconds]

    def _reject(self, inputs: Sequence[Input], models: tuple[str, ...], token_scores: bool) -> None:
        num_waiting = len(self._new) + self._tokenizer.num_waiting
        num_waiting += sum(device.scheduler.num_waiting_requests for device in self.devices.values())
        if num_waiting >= self.max_waiting_requests:
            raise OverloadedError(f"{num_waiting} requests wait for room in the queue; retry later")
        if token_scores and (others := [name for name in models if not self.models[name].is_causal]):
            raise InvalidInputError(
                f"token_scores needs a causal model, and the {others[0]} model is not causal; leave it out"
            )
        if len({self._vocabularies[name] for name in models}) > 1:
            for item in inputs:
                if isinstance(item.form, TokenIds):
                    raise InvalidInputError(
                        f"{item.location} has input_ids, which mean different tokens to {' and '.join(models)}; name one model",
                        item.item,
                    )

    def _tokenize_slice(self, requests: list[Request]) -> list[Request]:
        """Tokenizes the next inputs of each request and queues them, in one batch per tokenization and truncation.

        Returns the requests that have inputs left.
        """
        requests = [request for request in requests if not request.cancelled]
        slices = [(request, next_slice(request)) for request in requests]
        jobs: dict[torch.device, list[Job]] = {device: [] for device in self.devices}
        failed: list[tuple[Request, RequestError]] = []
        for vocabulary, tokenization in self._tokenizations.items():
            by_models = {each: self._names(each, vocabulary) for each in {request.models for request in requests}}
            for truncation in dict.fromkeys(request.truncation for request in requests):
                chosen = [
                    (request, named, slot)
                    for request, slots in slices
                    if request.truncation == truncation and (named := by_models[request.models])
                    for slot in slots
                ]
                outcomes = tokenization.encode([request.inputs[slot] for request, _, slot in chosen], truncation)
                for (request, named, slot), encoded in zip(chosen, outcomes, strict=True):
                    checked = self._checked(request.inputs[slot], encoded, named)
                    if isinstance(checked, RequestError):
                        failed.append((request, checked))
                        continue
                    for device, names in named.items():
                        jobs[device].append(Job(request, slot, checked, names, vocabulary, request.token_scores))
        for request, slots in slices:
            request.cursor = slots.stop
        for request, error in failed:
            self._fail_requests([request], error)
        wrong: set[Ticket] = {request for request, _ in failed}
        for device, all_jobs in jobs.items():
            own = [job for job in all_jobs if job.ticket not in wrong]
            if not self.devices[device].scheduler.submit(own):
                self._fail_requests([job.ticket for job in own], InferenceFailedError(DEAD))
        return [request for request in requests if request.cursor < len(request.inputs) and request not in wrong]

    def _checked(
        self, given: Input, encoded: TokenSequence | RequestError, named: Mapping[torch.device, Sequence[str]]
    ) -> TokenSequence | RequestError:
        """The input's sequence; an error if tokenization failed or one of the models cannot score the sequence."""
        if isinstance(encoded, TokenSequence):
            for names in named.values():
                for name in names:
                    if (fault := self.models[name].find_fault(encoded)) is not None:
                        return InvalidInputError(f"{given.location} {fault}", given.item)
        return encoded

    def _names(self, models: tuple[str, ...], vocabulary: str) -> dict[torch.device, tuple[str, ...]]:
        """By device, those of `models` that use this vocabulary."""
        named: dict[torch.device, tuple[str, ...]] = {}
        for name in models:
            if self._vocabularies[name] == vocabulary:
                device = self.models[name].device
                named[device] = (*named.get(device, ()), name)
        return named

    def _fail_requests(self, requests: Sequence[Ticket], error: Exception) -> None:
        self._on_loop(fail_all, requests, error)

    def _deliver(self, outcomes: list[Outcome], batch: BatchScored | None) -> None:
        self._on_loop(record_all, outcomes, batch)

    def _on_loop(self, function: Callable[..., None], *args: object) -> None:
        """Calls a function on the event loop, from any thread: only the event loop changes requests."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)


def record_all(outcomes: list[Outcome], batch: BatchScored | None) -> None:
    for job, model, scored in outcomes:
        assert isinstance(job.ticket, Request)
        job.ticket.record(job, model, scored, batch)
