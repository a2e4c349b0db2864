"""verl: `compute_score` (a coroutine), `compute_score_sync` (a plain function), and `compute_score_batch` for old versions.

    reward.custom_reward_function.path=pkg://reward_client.adapters.verl reward.custom_reward_function.name=compute_score

| reward manager | function |
| --- | --- |
| naive, dapo, gdpo, rate_limited | compute_score |
| remote, which takes no coroutine | compute_score_sync |
| batch, of versions before 0.9 | compute_score_batch |

verl does not pass the prompt, so the data set must have it in `extra_info`, as `prompt`, `raw_prompt` or `question`,
a string or messages. `ground_truth` "safety" or `extra_info["is_safety"]` marks a safety prompt. The other numbers
of the result go into verl's metrics, and GDPO reads them. Options (`reward_client.adapters.source`) come from verl's
`custom_reward_function.reward_kwargs`, else from the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reward_client.adapters.source import Choice, Item, Reward, check_options, item_of, shared
from reward_client.async_client import AsyncRewardClient
from reward_client.client import RewardClient
from reward_client.errors import InvalidItemError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEADLINE_SECONDS = 280.0
"""verl's `rate_limited` manager times out after 300 s; the other managers do not."""
NUM_COROUTINES = 512
"""verl starts its whole share of a batch at once."""
NUM_THREADS = 32
"""Plain functions run in the event loop's default executor, which has at most this many."""
PROMPT_KEYS = ("prompt", "raw_prompt", "question")
VERLS_OWN = ("reward_router_address", "reward_model_tokenizer", "overlong_buffer_cfg", "max_resp_len")
"""Arguments that verl passes in addition to `reward_kwargs`; they are ignored."""


async def compute_score(
    data_source: str,  # noqa: ARG001 - verl's signature
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None,
    **options: Any,
) -> dict[str, float]:
    """{"score", "safety_score", "helpfulness_score", "selected_safety", "truncated"}, raw scores, NaN for a model that did not run.

    Raises a RewardClientError if a score cannot be computed. An over-long response is truncated and logged.
    """
    check_options(options, VERLS_OWN)
    choice = Choice.from_environment(options)
    item = verl_item(solution_str, ground_truth, extra_info)
    client = shared(AsyncRewardClient, DEADLINE_SECONDS, NUM_COROUTINES, options)
    (reward,) = await choice.ascore(client, [item])
    return metrics(reward)


def compute_score_sync(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None,
    **options: Any,
) -> dict[str, float]:
    """As `compute_score`, for the manager `remote`, which accepts only a plain function."""
    (answer,) = compute_score_batch([data_source], [solution_str], [ground_truth], [extra_info], **options)
    return answer


def compute_score_batch(
    data_sources: Sequence[str],  # noqa: ARG001 - verl's signature
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    **options: Any,
) -> list[dict[str, float]]:
    """As `compute_score`, for a whole batch in order. Only verl before 0.9 has the manager `batch` that calls it."""
    check_options(options, VERLS_OWN)
    items = [verl_item(*sample) for sample in zip(solution_strs, ground_truths, extra_infos, strict=True)]
    if not items:
        return []
    client = shared(RewardClient, DEADLINE_SECONDS, NUM_THREADS, options)
    return [metrics(reward) for reward in Choice.from_environment(options).score(client, items)]


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
