"""`AsyncRewardClient` sends requests from coroutines. `plans` says what to send, `exchange` when to send it again."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from reward_client import plans
from reward_client.base import ClientBase
from reward_client.errors import ClientClosedError
from reward_client.exchange import Attempt, Call, Pause, Reply, exchange

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from typing import Literal, Self

    from reward_client.results import Comparison, PPORewards, Scores
    from reward_client.settings import Settings

T = TypeVar("T")


class Connections:
    """The connections of one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.http = httpx.AsyncClient(**settings.http_options())
        self.free = asyncio.Semaphore(settings.max_concurrency)
        self.closer = close_with_the_loop(self.http)


async def close_with_the_loop(http: httpx.AsyncClient) -> AsyncGenerator[None]:
    """Closes the connections when it is closed itself, which `asyncio.run` does with every generator at its end
    (`loop.shutdown_asyncgens`).
    """
    try:
        yield
    finally:
        await http.aclose()


class AsyncRewardClient(ClientBase):
    """`RewardClient` for coroutines: the same methods, parameters and errors. `ClientBase.__init__` documents the settings.

    Several event loops may share it; each has its own connections, which `asyncio.run` closes at its end. If you close a loop
    yourself, call `aclose` first. A forked process that inherits the client opens its own connections; a pickled client
    contains only the settings.
    """

    def reset(self) -> None:
        super().reset()
        self._by_loop: dict[tuple[int, asyncio.AbstractEventLoop], Connections] = {}

    async def score(
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
        """As `RewardClient.score`."""
        options = {
            "models": models,
            "truncation": truncation,
            "token_scores": token_scores,
            "step_scores": step_scores,
            "reduce": reduce,
        }
        return await self._run(plans.score(items, self.settings.limits, options), deadline_seconds)

    async def compare(
        self,
        pairs: plans.Items,
        *,
        model: str | None = None,
        models: Sequence[str] | None = None,
        margin_scheme: Literal["small", "large"] | None = None,
        truncation: Literal["error", "prompt", "left", "right"] | None = None,
        deadline_seconds: float | None = None,
    ) -> Comparison:
        """As `RewardClient.compare`."""
        options = {"model": model, "models": models, "margin_scheme": margin_scheme, "truncation": truncation}
        return await self._run(plans.compare(pairs, self.settings.limits, options), deadline_seconds)

    async def ppo_reward(
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
        """As `RewardClient.ppo_reward`."""
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
        return await self._run(plans.ppo_reward(items, self.settings.limits, options, columns), deadline_seconds)

    async def info(self, *, deadline_seconds: float | None = None) -> Mapping[str, Any]:
        """As `RewardClient.info`."""
        return await self._run(plans.get("/info"), deadline_seconds)

    async def post(self, path: str, body: Mapping[str, Any], *, deadline_seconds: float | None = None) -> Any:
        """As `RewardClient.post`."""
        return await self._run(plans.post(path, body), deadline_seconds)

    async def aclose(self) -> None:
        """Closes the client: the running loop's connections now, those of other loops when those loops end."""
        self.is_closed = True
        here = self._by_loop.pop((os.getpid(), asyncio.get_running_loop()), None)
        if here is not None:
            await here.closer.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _connections(self) -> Connections:
        """The running loop's connections. After a fork, those of the parent process are kept and not touched: closing them
        here would take them from the parent's loop.
        """
        key = os.getpid(), asyncio.get_running_loop()
        here = self._by_loop.get(key)
        if here is None or here.http.is_closed:
            for pid, loop in list(self._by_loop):
                if pid == key[0] and loop.is_closed():
                    del self._by_loop[pid, loop]
            here = self._by_loop[key] = Connections(self.settings)
            await anext(here.closer)  # makes the loop know it; does not wait for anything
        return here

    async def _run(self, plan: plans.Plan[T], deadline_seconds: float | None) -> T:
        self.check_open()
        deadline = self.settings.deadline(deadline_seconds)
        try:
            calls = next(plan)
            while True:
                calls = plan.send(await self._send_all(calls, deadline))
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _send_all(self, calls: list[Call], deadline_seconds: float) -> list[Any]:
        """The replies in order. The first error ends all of the call's requests."""
        if len(calls) == 1:
            return [await self._send(calls[0], deadline_seconds)]
        tasks = [asyncio.ensure_future(self._send(call, deadline_seconds)) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _send(self, call: Call, deadline_seconds: float) -> Any:
        steps = exchange(call, self.settings.retry, deadline_seconds, self.settings.address)
        attempt: Attempt | None = None
        while True:
            self.check_open()
            try:
                step = steps.send(attempt)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, Pause):
                self.note_pause(step)
                await asyncio.sleep(step.seconds)
                attempt = None
            else:
                attempt = await self._attempt(call, step.timeout_seconds)

    async def _attempt(self, call: Call, seconds: float) -> Attempt:
        connections = await self._connections()
        async with connections.free:
            start = time.monotonic()
            try:
                reply = await asyncio.wait_for(self._request(connections.http, call, seconds), seconds)
            except asyncio.TimeoutError:  # noqa: UP041 - in Python 3.10 it is not yet TimeoutError
                return Attempt(httpx.ReadTimeout("the reply did not end in time"), time.monotonic() - start)
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

    async def _request(self, http: httpx.AsyncClient, call: Call, seconds: float) -> Reply:
        response = await http.request(
            call.method, call.path, content=call.content, headers=call.headers, timeout=self.settings.timeout(seconds)
        )
        if self.is_closed and "network_stream" in response.extensions:
            await response.extensions["network_stream"].aclose()  # httpx closes no connection that is just being opened
        return Reply(response.status_code, response.headers, response.content)

    def _closed(self) -> ClientClosedError:
        return ClientClosedError(f"this {type(self).__name__} was closed during the call")
