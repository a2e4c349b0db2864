"""TRL 1.x: an async reward function for `GRPOTrainer` and `RLOOTrainer`.

    GRPOTrainer(..., reward_funcs=reward_function("http://127.0.0.1:8000"))

Each call scores the whole batch in one go; the trainer normalises within its groups itself, so that rewards are raw.
A column `is_safety` of the dataset marks safety prompts. An item that can never be scored (too long, broken) gets
None, which TRL leaves out; a service that does not answer is an exception.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from reward_client.adapters.source import Choice, Item, Reward, item_of
from reward_client.aio import AsyncRewardClient
from reward_client.errors import InvalidRequestError, UnauthorizedError

logger = logging.getLogger(__name__)

RewardFunction = Callable[..., Awaitable["list[float | None]"]]


def reward_function(
    client: AsyncRewardClient | str = "http://127.0.0.1:8000",
    *,
    model: str = "llama2",
    truncation: str = "prompt",
    rendered: bool = False,
    deadline_seconds: float = 180.0,
    name: str = "reward_service",
) -> RewardFunction:
    """A function for `reward_funcs`; `name` is what TRL's logs call it.

    String prompts take the service's chat template, unless they are `rendered` already. `client` is a client, whose
    owner closes it, or an address; then each call opens its own connections, closes them, and takes at most
    `deadline_seconds`.
    """
    choice = Choice(model, truncation)

    async def reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None = None,  # noqa: ARG001 - TRL passes it by name
        is_safety: Sequence[bool] | None = None,
        **_: Any,
    ) -> list[float | None]:
        labels = is_safety if is_safety is not None else [False] * len(prompts)
        items = [
            item_of(prompt, completion, rendered=rendered, is_safety=bool(label))
            for prompt, completion, label in zip(prompts, completions, labels, strict=True)
        ]
        if isinstance(client, AsyncRewardClient):
            return await values(client, choice, items)
        async with AsyncRewardClient(client, deadline_seconds=deadline_seconds) as own:
            return await values(own, choice, items)

    reward.__name__ = name
    return reward


async def values(client: AsyncRewardClient, choice: Choice, items: list[Item]) -> list[float | None]:
    """A reward an item, None for what the server refuses for that item's own sake."""
    if not items:
        return []
    try:
        rewards: list[Reward | None] = list(await choice.ascore(client, items))
    except UnauthorizedError:
        raise
    except InvalidRequestError as error:
        if error.item is None:
            raise
        rewards = await asyncio.gather(*(value(client, choice, i, item) for i, item in enumerate(items)))
    return [reward.value if reward is not None else None for reward in rewards]


async def value(client: AsyncRewardClient, choice: Choice, i: int, item: Item) -> Reward | None:
    try:
        return (await choice.ascore(client, [item]))[0]
    except InvalidRequestError as error:
        if error.item is None:
            raise
        logger.warning("completion %d has no reward: %s", i, error)
        return None
