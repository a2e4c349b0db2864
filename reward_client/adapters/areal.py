"""AReaL: a sync reward function that returns, or raises, within AReaL's 15 seconds.

    workflow_kwargs = dict(reward_fn="reward_client.adapters.areal.reward_fn", ...)

AReaL calls it in a pool of processes with the prompt and completion as text, rendered and with special tokens, or as
messages. It turns a `TimeoutError` into a reward of 0; any other exception rejects the trajectory after four tries. So this
module never raises a `TimeoutError`.
"""

from __future__ import annotations

from typing import Any

from reward_client.adapters.source import Choice, item_of, shared, variable
from reward_client.adapters.token_ids import TokenIds, check_scores, loaded
from reward_client.client import RewardClient
from reward_client.errors import RewardClientError

DEADLINE_SECONDS = 14.0


class LateRewardError(RewardClientError):
    """The reward did not arrive within the deadline. It replaces `DeadlineError`, which is a `TimeoutError`."""


def reward_fn(
    prompt: Any,
    completions: Any,
    prompt_ids: Any = None,
    completion_ids: Any = None,
    is_safety: bool = False,
    **_: Any,
) -> float:
    """The raw score of one completion: of its token ids if REWARD_CLIENT_TOKENIZER is set, else of its text.

    Raises a RewardClientError that is not a TimeoutError.
    """
    client = shared(RewardClient, DEADLINE_SECONDS, 1)
    directory = variable("TOKENIZER")
    try:
        if directory and prompt_ids is not None and completion_ids is not None:
            item = checked(client, directory).item(list(prompt_ids), list(completion_ids), is_safety=is_safety)
        else:
            item = item_of(prompt, completions, rendered=True, is_safety=is_safety)
        (reward,) = Choice.from_environment().score(client, [item])
    except TimeoutError as error:
        raise LateRewardError(str(error)) from error
    return reward.value


_checked: set[tuple[str, str]] = set()


def checked(client: RewardClient, directory: str) -> TokenIds:
    """The tokenizer; the first call checks that the service has the same one."""
    ids = loaded(directory)
    key = client.settings.base_url, directory
    if key not in _checked:
        check_scores(client.score(ids.probe()))
        _checked.add(key)
    return ids
