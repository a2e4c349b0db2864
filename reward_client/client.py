"""`RewardClient` sends requests from threads. `plans` says what to send, `exchange` when to send it again."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from reward_client import plans
from reward_client.base import ClientBase
from reward_client.errors import ClientClosedError
from reward_client.exchange import Attempt, Call, Pause, Reply, exchange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal, Self

    from reward_client.results import Comparison, PPORewards, Scores
    from reward_client.settings import Settings

T = TypeVar("T")


class Connections:
    """The connections and threads of one process."""

    def __init__(self, settings: Settings) -> None:
        self.http = httpx.Client(**settings.http_options())
        self.free = threading.Semaphore(settings.max_concurrency)
        self.threads = ThreadPoolExecutor(settings.max_concurrency, thread_name_prefix="reward-client")


class RewardClient(ClientBase):
    """A client of one reward service, for threads. `ClientBase.__init__` documents the settings.

    Threads may share it. A forked process that inherits the client opens its own connections; a pickled client contains only
    the settings. `close` it, or use it as a context manager. Every error that a method raises is a RewardClientError.
    """

    def reset(self) -> None:
        super().reset()
        self._by_process: dict[int, Connections] = {}

    def score(
        self,
        items: plans.Items,
        *,
        models: Sequence[str] | None = None,
        truncation: Literal["error", "prompt", "left", "right"] | None = None,
        token_scores: bool | None = None,
        step_scores: bool | None = None,
        reduce: Literal["min", "last", "mean", "product"] | None = None,
        deadline_seconds: float | None = None,
    ) -> Scores:
        """POST /score: every model's raw score of every item. None means the server's default.

        items: dicts of {"prompt", "response"}, {"messages"}, {"text"}, {"rendered"} or {"input_ids"}.
        models: names of models, such as "safety"; by default all loaded models.
        truncation: what happens to an item with more tokens than the model accepts; by default an InvalidRequestError.
        token_scores: whether each result also has the score after every token.
        step_scores: whether each result of a process reward model has the score of every step; true by default.
        reduce: how such a model's step scores become one score; by default as the model declares.
        deadline_seconds: for each request, instead of the client's default.
        """
        options = {
            "models": models,
            "truncation": truncation,
            "token_scores": token_scores,
            "step_scores": step_scores,
            "reduce": reduce,
        }
        return self._run(plans.score(items, self.settings.limits, options), deadline_seconds)

    def compare(
        self,
        pairs: plans.Items,
        *,
        model: str | None = None,
        models: Sequence[str] | None = None,
        margin_scheme: Literal["small", "large"] | None = None,
        truncation: Literal["error", "prompt", "left", "right"] | None = None,
        deadline_seconds: float | None = None,
    ) -> Comparison:
        """POST /compare: scores, margin ranking loss and its gradients for every pair. None means the server's default.

        pairs: dicts of {"prompt", "chosen", "rejected"} or {"chosen_messages", "rejected_messages"}, with "rating" or "margin".
        model: the model's name; by default "helpfulness". models: several models instead of one: `by_model` has the results of each.
        margin_scheme: which margin a rating stands for.
        """
        options = {"model": model, "models": models, "margin_scheme": margin_scheme, "truncation": truncation}
        return self._run(plans.compare(pairs, self.settings.limits, options), deadline_seconds)

    def ppo_reward(
        self,
        items: plans.Items,
        *,
        policy_logprobs: Any = None,
        reference_logprobs: Any = None,
        mask: Any = None,
        beta: float | None = None,
        safety_threshold: float | None = None,
        combine: Mapping[str, Any] | None = None,
        whiten: Mapping[str, Any] | None = None,
        kl: Mapping[str, Any] | None = None,
        process: Mapping[str, Any] | None = None,
        token_rewards: bool | None = None,
        score_clip: Sequence[float] | None = None,
        missing_eos_penalty: float | None = None,
        truncation: Literal["error", "prompt", "left", "right"] | None = None,
        deadline_seconds: float | None = None,
    ) -> PPORewards:
        """POST /ppo-reward: selected, whitened, KL-penalised rewards. None means the server's default.

        items: as for `score`, with "is_safety", "group_id" and "ended" where needed; or with known scores instead of an input:
            "safety_score", "helpfulness_score", "scores" (by model name).
        policy_logprobs, reference_logprobs: log pi and log pi_0 of the response's tokens, in nats, of shape (items, tokens);
            tensors, arrays or lists. An item may have its own row instead. Send both or neither.
        mask: 1 for a token that counts, else 0; of the same shape. Any other value raises an InvalidItemError.
        beta: the weight of the KL penalty, in reward per nat. safety_threshold: a probability.
        combine: {"mode": "llama2" | "weighted" | "lagrangian" | "worst", ...}: how the models' scores become one.
        whiten: {"mode": "batch" | "group" | "none", "shift_mean": bool, "stats": ..., "singletons": ...}. If a batch is sent
            in several requests, it is still whitened as one.
        kl: {"estimator": ..., "clip": nats}. token_rewards: whether each result has one reward per token.
        process: {"model": ..., "weight": ..., "on": "score" | "probability"}: process rewards, from a model or from the
            items' "process_rewards" and "step_ends".
        score_clip: (lowest, highest) score. missing_eos_penalty: subtracted from the score where "ended" is false.
        """
        columns = {"policy_logprobs": policy_logprobs, "reference_logprobs": reference_logprobs, "mask": mask}
        options = {
            "beta": beta,
            "safety_threshold": safety_threshold,
            "combine": combine,
            "whiten": whiten,
            "kl": kl,
            "process": process,
            "token_rewards": token_rewards,
            "score_clip": score_clip,
            "missing_eos_penalty": missing_eos_penalty,
            "truncation": truncation,
        }
        return self._run(plans.ppo_reward(items, self.settings.limits, options, columns), deadline_seconds)

    def info(self, *, deadline_seconds: float | None = None) -> Mapping[str, Any]:
        """GET /info: models, limits, version."""
        return self._run(plans.get("/info"), deadline_seconds)

    def post(self, path: str, body: Mapping[str, Any], *, deadline_seconds: float | None = None) -> Any:
        """POST to any other route, with the same retries and errors. Returns the response's JSON."""
        return self._run(plans.post(path, body), deadline_seconds)

    def close(self) -> None:
        """Closes this process's connections. Calls in progress raise ClientClosedError."""
        self.is_closed = True
        here = self._by_process.pop(os.getpid(), None)
        if here is not None:
            here.threads.shutdown(wait=False, cancel_futures=True)
            here.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connections(self) -> Connections:
        """The connections of this process. After a fork, the parent's are not touched: the processes share their sockets, and
        a thread that does not exist in this process may hold one of their locks. For the same reason, no lock guards this.
        """
        pid = os.getpid()
        here = self._by_process.get(pid)
        if here is None:
            made = Connections(self.settings)
            here = self._by_process.setdefault(pid, made)
            if here is not made:  # another thread was faster
                made.http.close()
        if self.is_closed:  # since the call last looked
            self.close()
            raise self._closed()
        return here

    def _run(self, plan: plans.Plan[T], deadline_seconds: float | None) -> T:
        self.check_open()
        deadline = self.settings.deadline(deadline_seconds)
        try:
            calls = next(plan)
            while True:
                calls = plan.send(self._send_all(calls, deadline))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _send_all(self, calls: list[Call], deadline_seconds: float) -> list[Any]:
        """The replies in order. Several requests are sent by threads; the first error ends them all."""
        is_over = threading.Event()
        if len(calls) == 1:
            return [self._send(calls[0], deadline_seconds, is_over)]
        try:
            threads = self._connections().threads
            futures = [threads.submit(self._send, call, deadline_seconds, is_over) for call in calls]
        except RuntimeError as error:  # the pool was shut down
            raise self._closed() from error
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            return [future.result() for future in futures]
        except CancelledError as error:
            raise self._closed() from error
        finally:
            is_over.set()
            for future in futures:
                future.cancel()

    def _send(self, call: Call, deadline_seconds: float, is_over: threading.Event) -> Any:
        steps = exchange(call, self.settings.retry, deadline_seconds, self.settings.address)
        attempt: Attempt | None = None
        while True:
            if is_over.is_set():
                raise ClientClosedError("another request of the same call failed")
            self.check_open()
            try:
                step = steps.send(attempt)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, Pause):
                self.note_pause(step)
                is_over.wait(step.seconds)
                attempt = None
            else:
                attempt = self._attempt(call, step.timeout_seconds)

    def _attempt(self, call: Call, seconds: float) -> Attempt:
        connections = self._connections()
        with connections.free:
            start = time.monotonic()
            try:
                reply = self._request(connections.http, call, seconds)
            except httpx.RequestError as error:
                if self.is_closed:
                    raise self._closed() from error
                return Attempt(error, time.monotonic() - start)
            except RuntimeError as error:
                if self.is_closed:
                    raise self._closed() from error
                raise
        self.note_reply()
        return Attempt(reply, time.monotonic() - start)

    def _request(self, http: httpx.Client, call: Call, seconds: float) -> Reply:
        """Reads the response in pieces, so that one that arrives too slowly ends at the deadline."""
        until = time.monotonic() + seconds
        chunks = []
        with http.stream(
            call.method, call.path, content=call.content, headers=call.headers, timeout=self.settings.timeout(seconds)
        ) as response:
            for part in response.iter_bytes():
                chunks.append(part)
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("the reply did not end in time")
        if self.is_closed and "network_stream" in response.extensions:
            response.extensions["network_stream"].close()  # httpx closes no connection that is just being opened
        return Reply(response.status_code, response.headers, b"".join(chunks))

    def _closed(self) -> ClientClosedError:
        return ClientClosedError(f"this {type(self).__name__} was closed during the call")
