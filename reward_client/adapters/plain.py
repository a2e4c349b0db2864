"""Trainers that call a sync function with plain lists: Tunix, TRL's online DPO and other TRL trainers, and a loop of your own.

    reward_fns=[reward_fn]            # Tunix
    reward_funcs=reward_fn            # TRL's OnlineDPOTrainer
    reward(prompt, response, target)  # torchforge: one sample at a time

Options are environment variables (`reward_client.adapters.source`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reward_client.adapters.source import Choice, item_of, shared
from reward_client.client import RewardClient

if TYPE_CHECKING:
    from collections.abc import Sequence

DEADLINE_SECONDS = 180.0


def reward_fn(
    prompts: Sequence[Any], completions: Sequence[Any], is_safety: Sequence[bool] | None = None, **_: Any
) -> list[float]:
    """One raw score per completion, in order; strings or messages. An over-long input is truncated and logged.

    is_safety: marks safety prompts. Raises a RewardClientError if a score cannot be computed, and ValueError for lists of
    different lengths.
    """
    labels = [False] * len(prompts) if is_safety is None else is_safety
    items = [
        item_of(prompt, completion, is_safety=bool(label))
        for prompt, completion, label in zip(prompts, completions, labels, strict=True)
    ]
    if not items:
        return []
    client = shared(RewardClient, DEADLINE_SECONDS)
    return [reward.value for reward in Choice.from_environment().score(client, items)]


def reward(prompt: Any, response: Any, target: Any = None, **_: Any) -> float:  # noqa: ARG001 - torchforge passes it
    """The raw score of one response."""
    (value,) = reward_fn([prompt], [response])
    return value
