"""verl: `compute_score` for one sample (async), `compute_score_batch` for `BatchRewardManager`.

    reward.custom_reward_function.path=reward.py reward.custom_reward_function.name=compute_score

verl does not pass the prompt; the data set has to bring it in `extra_info`, as `prompt`, `raw_prompt` or `question`,
a string or messages. `ground_truth` "safety" or `extra_info["is_safety"]` marks a safety prompt. The other numbers of
the answer go into verl's metrics. The environment says where the service is (`reward_client.adapters.source`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reward_client.adapters.source import Choice, Item, Reward, item_of, shared
from reward_client.aio import AsyncRewardClient
from reward_client.client import RewardClient
from reward_client.errors import InvalidItemError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEADLINE_SECONDS = 280.0
"""verl's own time-out for a reward is 300."""
PROMPT_KEYS = ("prompt", "raw_prompt", "question")


async def compute_score(
    data_source: str,  # noqa: ARG001 - verl's signature
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None,
    **_: Any,
) -> dict[str, float]:
    """{"score", ...}; raises a RewardClientError, which verl reports, rather than a 0."""
    choice = Choice.from_environment()
    item = verl_item(solution_str, ground_truth, extra_info)
    (reward,) = await choice.ascore(shared(AsyncRewardClient, DEADLINE_SECONDS), [item])
    return metrics(reward)


def compute_score_batch(
    data_sources: Sequence[str],  # noqa: ARG001 - verl's signature
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    **_: Any,
) -> list[dict[str, float]]:
    """As `compute_score`, for a whole batch in order."""
    items = [verl_item(*sample) for sample in zip(solution_strs, ground_truths, extra_infos, strict=True)]
    if not items:
        return []
    return [
        metrics(reward) for reward in Choice.from_environment().score(shared(RewardClient, DEADLINE_SECONDS), items)
    ]


def verl_item(solution: str, ground_truth: Any, extra_info: Mapping[str, Any] | None) -> Item:
    info = extra_info or {}
    prompt = next((info[key] for key in PROMPT_KEYS if info.get(key) is not None), None)
    if prompt is None:
        raise InvalidItemError(
            f"extra_info has none of {', '.join(PROMPT_KEYS)} (it has {', '.join(map(str, info)) or 'nothing'}); a reward "
            "model needs the prompt: put it there when you prepare the data set"
        )
    is_safety = bool(info.get("is_safety")) or (isinstance(ground_truth, str) and ground_truth == "safety")
    return item_of(prompt, solution, is_safety=is_safety)


def metrics(reward: Reward) -> dict[str, float]:
    return {"score": reward.value, **reward.extra}
