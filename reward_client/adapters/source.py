"""What the adapters share: where the service is, how a trainer's texts become items, and which score is the reward.

Most trainers load a reward function by its name and pass no arguments to it, so its options are environment variables. A trainer
that does pass arguments (verl's `reward_kwargs`) may pass the same options by their names in lower case, which take precedence.

| REWARD_CLIENT_ | default | |
| --- | --- | --- |
| URL | http://127.0.0.1:8000 | may hold user:password |
| API_KEY | none | |
| MODEL | llama2 | llama2 (the paper's selection between the two), or a model's name: safety, helpfulness, ... |
| TRUNCATION | left | what happens to an over-long input; `left` drops its oldest tokens, beginning with the prompt |
| DEADLINE_SECONDS | a little less than the trainer's own | |
| TOKENIZER | none | AReaL: a directory; token ids are then scored instead of the text |
| MAX_CONCURRENCY | as many as the trainer starts at once | connections of one process |
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from reward_client.async_client import AsyncRewardClient
from reward_client.client import RewardClient
from reward_client.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reward_client.results import PPORewards, Scores

logger = logging.getLogger("reward_client")

Item = dict[str, Any]
Client = TypeVar("Client", RewardClient, AsyncRewardClient)
Number = TypeVar("Number", int, float)
MODEL_NAME = "[a-z][a-z0-9_]{0,31}"
TRUNCATIONS = ("error", "prompt", "left", "right")
OPTIONS = ("url", "api_key", "model", "truncation", "deadline_seconds", "max_concurrency")


@dataclass(frozen=True)
class Reward:
    """One item's reward (a raw score) and further values to log: numbers only, with the same names for every item."""

    value: float
    extra: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """Which score is the reward, and how over-long inputs are truncated."""

    model: str = "llama2"
    truncation: str = "prompt"

    def __post_init__(self) -> None:
        if not re.fullmatch(MODEL_NAME, self.model):
            raise ValueError(f"the model is {self.model!r}; give llama2, safety, helpfulness, or another model's name")
        if self.truncation not in TRUNCATIONS:
            raise ValueError(f"truncation is {self.truncation!r}; choose one of {', '.join(TRUNCATIONS)}")

    @classmethod
    def from_environment(cls, given: Mapping[str, Any] | None = None) -> Choice:
        """`given` are options that a trainer passed, by name."""
        return cls(option(given, "model") or "llama2", option(given, "truncation") or "left")

    def options(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Options of `ppo_reward` for llama2, else of `score`."""
        has_boundary = all("rendered" not in item and "input_ids" not in item for item in items)
        cut = "left" if self.truncation == "prompt" and not has_boundary else self.truncation
        if self.model == "llama2":
            return {"whiten": {"mode": "none"}, "truncation": cut}
        return {"models": [self.model], "truncation": cut}

    def prepared(self, items: Sequence[Item]) -> list[Item]:
        """With a single model, `is_safety` has no effect, and /score does not accept it."""
        if self.model == "llama2":
            return list(items)
        return [{key: value for key, value in item.items() if key != "is_safety"} for item in items]

    def score(self, client: RewardClient, items: Sequence[Item]) -> list[Reward]:
        ready, options = self.prepared(items), self.options(items)
        if self.model == "llama2":
            return noted(selected(client.ppo_reward(ready, **options)))
        return noted(scored(client.score(ready, **options), self.model))

    async def ascore(self, client: AsyncRewardClient, items: Sequence[Item]) -> list[Reward]:
        ready, options = self.prepared(items), self.options(items)
        if self.model == "llama2":
            return noted(selected(await client.ppo_reward(ready, **options)))
        return noted(scored(await client.score(ready, **options), self.model))


def noted(rewards: list[Reward]) -> list[Reward]:
    """The rewards; logs how many inputs were truncated, since the whole text might get a different score."""
    count = sum(bool(reward.extra["truncated"]) for reward in rewards)
    if count:
        logger.warning("%d of %d inputs had more tokens than the model takes and were truncated", count, len(rewards))
    return rewards


def selected(rewards: PPORewards) -> list[Reward]:
    """R_c as a raw score, with both models' scores."""
    return [
        Reward(
            result.reward,
            extra(
                safety=result.safety_score,
                helpfulness=result.helpfulness_score,
                is_safety=result.selected == "safety",
                truncated=result.truncated,
            ),
        )
        for result in rewards.results
    ]


def scored(scores: Scores, model: str) -> list[Reward]:
    """One model's raw scores; the columns of safety and helpfulness are NaN unless they are that model's."""
    answers = [result.scores[model] for result in scores.results]
    return [
        Reward(
            answer.score,
            extra(
                safety=answer.score if model == "safety" else None,
                helpfulness=answer.score if model == "helpfulness" else None,
                is_safety=model == "safety",
                truncated=answer.truncated,
            ),
        )
        for answer in answers
    ]


def extra(*, safety: float | None, helpfulness: float | None, is_safety: bool, truncated: bool) -> dict[str, float]:
    """The same names for every item, whichever models there are: verl stops if an item lacks one of the first item's names."""
    return {
        "safety_score": number(safety),
        "helpfulness_score": number(helpfulness),
        "selected_safety": float(is_safety),
        "truncated": float(truncated),
    }


def number(score: float | None) -> float:
    """NaN if a model was not loaded: trainers average these columns, so a 0 would look like a score."""
    return float("nan") if score is None else score


def item_of(prompt: Any, response: Any, *, rendered: bool = False, is_safety: bool = False) -> Item:
    """An item of a prompt and a response, each a string or messages.

    A rendered prompt is joined with its response, and the server ends the last turn as its chat template does; otherwise the
    template renders both.
    """
    item: Item
    prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(prompt, str) and isinstance(response, str):
        item = {"rendered": prompt + response} if rendered else {"prompt": prompt, "response": response}
    else:
        item = {"messages": [*turns(prompt, "user"), *turns(response, "assistant")]}
    return item | {"is_safety": True} if is_safety else item


KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""Message fields besides role and text that a chat template may render; the server rejects those that its own does not."""


def turns(given: Any, role: str) -> list[dict[str, Any]]:
    """Messages with a role, a text and what chat templates render; a string is one turn of `role`."""
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    return [
        {"role": message["role"], "content": text_of(message.get("content"))}
        | {name: message[name] for name in KEPT if message.get(name)}
        for message in given
    ]


def text_of(content: Any) -> str:
    """A message's text; if its content is a list of parts, the joined text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part.get("type") == "text")


def variable(name: str, default: str = "") -> str:
    return os.environ.get(f"REWARD_CLIENT_{name}", "") or default


def option(given: Mapping[str, Any] | None, name: str) -> Any:
    """An option that the trainer passed, else the environment's, else ""."""
    value = (given or {}).get(name)
    return variable(name.upper()) if value is None else value


def check_options(given: Mapping[str, Any], trainers_own: Sequence[str]) -> None:
    """Raises ConfigurationError for an argument that is neither an option nor one of the trainer's own; it may be misspelt."""
    for name in given:
        if name not in OPTIONS and name not in trainers_own:
            raise ConfigurationError(f"unknown option {name!r}; the options are {', '.join(OPTIONS)}")


def connection(
    deadline_seconds: float, max_concurrency: int = 16, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A client's arguments: the options given, else the environment's, else these two and the client's own."""
    return {
        "base_url": option(given, "url") or "http://127.0.0.1:8000",
        "api_key": option(given, "api_key") or None,
        "deadline_seconds": parsed(float, "deadline_seconds", option(given, "deadline_seconds") or deadline_seconds),
        "max_concurrency": parsed(int, "max_concurrency", option(given, "max_concurrency") or max_concurrency),
    }


def parsed(kind: type[Number], name: str, value: Any) -> Number:
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{name} (REWARD_CLIENT_{name.upper()}) is {value!r:.80}; pass a number") from error


_clients: dict[tuple[Any, ...], RewardClient | AsyncRewardClient] = {}


def shared(
    kind: type[Client], deadline_seconds: float, max_concurrency: int = 16, given: Mapping[str, Any] | None = None
) -> Client:
    """The process's client with these options (see `connection`); a forked process gets its own."""
    options: dict[str, Any] = connection(deadline_seconds, max_concurrency, given)
    key = (kind, os.getpid(), *options.values())
    if key not in _clients:
        _clients[key] = kind(**options)
    return cast("Client", _clients[key])
