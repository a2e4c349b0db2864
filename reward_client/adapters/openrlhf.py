"""OpenRLHF: `reward_func(queries, prompts, labels)` for `--reward.remote_url` with a Python file.

Point the option at a file that has `from reward_client.adapters.openrlhf import reward_func`. The queries are
rendered and contain their special tokens, so they go to the service's `/get_reward`, which adds none. With the service's URL in
the option, OpenRLHF calls that route itself; this function adds retries, deadlines and typed errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reward_client.adapters.source import shared, variable
from reward_client.client import RewardClient
from reward_client.errors import BadReplyError
from reward_client.results import is_number

if TYPE_CHECKING:
    from collections.abc import Sequence

DEADLINE_SECONDS = 170.0
"""OpenRLHF's HTTP client waits 180 s."""
NUM_THREADS = 32
"""OpenRLHF calls the function in the event loop's default executor, which has at most this many."""


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any] | None = None, **_: Any
) -> dict[str, Any]:
    """{"rewards": raw scores, "scores": probabilities, "extra_logs": {name: numbers}}, each in the queries' order."""
    body = {"query": list(queries), "prompts": list(prompts), "labels": list(labels) if labels is not None else None}
    model = variable("MODEL")
    reply = shared(RewardClient, DEADLINE_SECONDS, NUM_THREADS).post(
        "/get_reward", body | ({"model": model} if model else {})
    )
    for name in ("rewards", "scores"):
        values = reply.get(name)
        if not isinstance(values, list) or len(values) != len(queries) or not all(map(is_number, values)):
            raise BadReplyError(f"{len(queries)} queries were sent and {name} is {values!r:.80}")
    return {"rewards": reply["rewards"], "scores": reply["scores"], "extra_logs": dict(reply.get("extra_logs") or {})}
