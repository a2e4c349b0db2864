"""Replicas that show what happens to them, and faults that are put into them."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client

from app.engine.requests import Scores
from app.ray_serve.messages import ForwardedRequest, ForwardedResponse
from app.ray_serve.replica import Replica

REPLICA_HEADER = "x-replica"


class NamedReplica(Replica):
    """Says in each answer which replica gave it, and can lose its model thread."""

    async def answer(self, asked: ForwardedRequest) -> ForwardedResponse:
        answer = await super().answer(asked)
        answer.headers.append((REPLICA_HEADER.encode(), serve.get_replica_context().replica_id.unique_id.encode()))
        return answer

    def lose_model_thread(self) -> str:
        assert self.service.engine is not None
        for thread in self.service.engine.devices.values():
            thread.stop()
            thread.join()
        return str(serve.get_replica_context().replica_id.unique_id)


class HeldReplica(Replica):
    """Its engine answers nothing; it counts the requests that it has and those that were given up."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc] # Ray awaits it
        await super().__init__(args)
        self.num_entered = self.num_cancelled = 0
        self.service.score = self.hold

    async def hold(self, *_: Any, **__: Any) -> Scores:
        self.num_entered += 1
        try:
            return await asyncio.Event().wait()  # type: ignore[return-value] # which it never does
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise

    def counts(self) -> tuple[int, int]:
        return self.num_entered, self.num_cancelled


def pids(name: str, deployment: str) -> dict[str, int]:
    """The processes of an application's replicas that run, by their ids."""
    details = _get_global_client().get_serve_details()
    replicas = details["applications"][name]["deployments"][deployment]["replicas"]
    return {replica["replica_id"]: replica["pid"] for replica in replicas if replica["state"] == "RUNNING"}


def until(holds: Callable[[], bool], *, seconds: float = 180) -> None:
    """Returns once it holds: a cluster tells nobody, it can only be asked."""
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, f"not within {seconds} s"
        time.sleep(0.1)
