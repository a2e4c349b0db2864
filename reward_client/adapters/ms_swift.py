"""ms-swift: a class with the interface of its `AsyncORM`, for `--external_plugins plugin.py --reward_funcs reward_service`.

    # plugin.py
    from swift.rewards import orms
    from reward_client.adapters.ms_swift import RewardService
    orms["reward_service"] = RewardService

Options are environment variables (`reward_client.adapters.source`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reward_client.adapters.source import Choice, connection, item_of
from reward_client.async_client import AsyncRewardClient

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEADLINE_SECONDS = 180.0


class RewardService:
    """ms-swift constructs it with `args=...` and awaits it with the batch; it needs no base class."""

    def __init__(self, args: Any = None, **_: Any) -> None:
        self.args = args

    async def __call__(
        self,
        completions: Sequence[str],
        messages: Sequence[Sequence[Mapping[str, Any]]],
        is_safety: Sequence[bool] | None = None,
        **_: Any,
    ) -> list[float]:
        """One raw score per completion. `messages` are the rows' conversations, the completion last. ms-swift runs each call in an event
        loop of its own, so each opens its own connections.
        """
        labels = [False] * len(completions) if is_safety is None else is_safety
        items = [
            item_of(prompt_of(turns), completion, is_safety=bool(label))
            for turns, completion, label in zip(messages, completions, labels, strict=True)
        ]
        if not items:
            return []
        async with AsyncRewardClient(**connection(DEADLINE_SECONDS)) as client:
            return [reward.value for reward in await Choice.from_environment().ascore(client, items)]


def prompt_of(turns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The conversation without its completion."""
    return [*turns[:-1]] if turns and turns[-1]["role"] == "assistant" else [*turns]
