"""AReaL: a sync reward function that answers within AReaL's 15 seconds, or raises before they are over.

    workflow_kwargs = dict(reward_fn="reward_client.adapters.areal.reward_fn", ...)

AReaL calls it in a pool of processes with the prompt and completion as text, rendered and with special tokens, or as
messages. After four failed tries AReaL itself takes a reward of 0; watch its log for them.
"""

from __future__ import annotations

from typing import Any

from reward_client.adapters.source import Choice, item_of, shared
from reward_client.client import RewardClient

DEADLINE_SECONDS = 14.0


def reward_fn(
    prompt: Any,
    completions: Any,
    prompt_ids: Any = None,  # noqa: ARG001 - AReaL's signature; the texts say the same to any tokenizer
    completion_ids: Any = None,  # noqa: ARG001
    is_safety: bool = False,
    **_: Any,
) -> float:
    """The raw score of one completion."""
    item = item_of(prompt, completions, rendered=True, is_safety=is_safety)
    (reward,) = Choice.from_environment().score(shared(RewardClient, DEADLINE_SECONDS), [item])
    return reward.value
