"""What the adapters share: where the service is, how a trainer's texts become items, and which score is the reward.

Trainers load a reward function by its name, so that it cannot be given arguments; the environment has them:

| REWARD_CLIENT_ | default | |
| --- | --- | --- |
| URL | http://127.0.0.1:8000 | may hold user:password |
| API_KEY | none | |
| MODEL | llama2 | llama2 (the paper's selection of both), safety or helpfulness |
| TRUNCATION | prompt | what happens to an over-long input; left where nothing says where the response begins |
| DEADLINE_SECONDS | the trainer's own, less a little | |
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from reward_client.aio import AsyncRewardClient
from reward_client.client import RewardClient

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reward_client.results import PPORewards, Scores

Item = dict[str, Any]
Client = TypeVar("Client", RewardClient, AsyncRewardClient)
MODELS = ("llama2", "safety", "helpfulness")
TRUNCATIONS = ("error", "prompt", "left", "right")


@dataclass(frozen=True)
class Reward:
    """One item's reward, a raw score, and what else is worth logging; numbers only."""

    value: float
    extra: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """Which score is the reward, and how inputs are cut."""

    model: str = "llama2"
    truncation: str = "prompt"

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"the model is {self.model!r}; choose one of {', '.join(MODELS)}")
        if self.truncation not in TRUNCATIONS:
            raise ValueError(f"truncation is {self.truncation!r}; choose one of {', '.join(TRUNCATIONS)}")

    @classmethod
    def from_environment(cls) -> Choice:
        return cls(variable("MODEL", "llama2"), variable("TRUNCATION", "prompt"))

    def options(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Options of `ppo_reward` for llama2, else of `score`."""
        has_boundary = all("text" not in item for item in items)
        cut = "left" if self.truncation == "prompt" and not has_boundary else self.truncation
        if self.model == "llama2":
            return {"whiten": {"mode": "none"}, "truncation": cut}
        return {"models": [self.model], "truncation": cut}

    def prepared(self, items: Sequence[Item]) -> list[Item]:
        """`is_safety` decides nothing where one model is asked, and /score does not know it."""
        if self.model == "llama2":
            return list(items)
        return [{key: value for key, value in item.items() if key != "is_safety"} for item in items]

    def score(self, client: RewardClient, items: Sequence[Item]) -> list[Reward]:
        ready, options = self.prepared(items), self.options(items)
        if self.model == "llama2":
            return selected(client.ppo_reward(ready, **options))
        return scored(client.score(ready, **options), self.model)

    async def ascore(self, client: AsyncRewardClient, items: Sequence[Item]) -> list[Reward]:
        ready, options = self.prepared(items), self.options(items)
        if self.model == "llama2":
            return selected(await client.ppo_reward(ready, **options))
        return scored(await client.score(ready, **options), self.model)


def selected(rewards: PPORewards) -> list[Reward]:
    """R_c as a raw score, with both models' scores."""
    return [
        Reward(
            result.reward,
            {
                "safety_score": number(result.safety_score),
                "helpfulness_score": number(result.helpfulness_score),
                "selected_safety": float(result.selected == "safety"),
                "truncated": float(result.truncated),
            },
        )
        for result in rewards.results
    ]


def scored(scores: Scores, model: str) -> list[Reward]:
    return [
        Reward(
            result.scores[model].score,
            {f"{model}_score": result.scores[model].score, "truncated": float(result.scores[model].truncated)},
        )
        for result in scores.results
    ]


def number(score: float | None) -> float:
    """NaN where a model was not loaded: trainers average these columns, and a 0 would be taken for a score."""
    return float("nan") if score is None else score


def item_of(prompt: Any, response: Any, *, rendered: bool = False, is_safety: bool = False) -> Item:
    """An item of a prompt and a response, each a string or messages.

    A rendered prompt is joined with its response as it is; else the server's chat template renders both.
    """
    item: Item
    prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(prompt, str) and isinstance(response, str):
        item = {"text": prompt + response} if rendered else {"prompt": prompt, "response": response}
    else:
        item = {"messages": [*turns(prompt, "user"), *turns(response, "assistant")]}
    return item | {"is_safety": True} if is_safety else item


def turns(given: Any, role: str) -> list[dict[str, str]]:
    """Messages with a role and a text, and nothing else; a string is one turn of `role`."""
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    return [{"role": message["role"], "content": text_of(message.get("content"))} for message in given]


def text_of(content: Any) -> str:
    """A message's text: of a list of parts, the text parts joined."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part.get("type") == "text")


def variable(name: str, default: str = "") -> str:
    return os.environ.get(f"REWARD_CLIENT_{name}", "") or default


def connection(deadline_seconds: float) -> dict[str, Any]:
    """What the environment says, for either client."""
    return {
        "base_url": variable("URL", "http://127.0.0.1:8000"),
        "api_key": variable("API_KEY") or None,
        "deadline_seconds": float(variable("DEADLINE_SECONDS", str(deadline_seconds))),
    }


_clients: dict[tuple[Any, ...], RewardClient | AsyncRewardClient] = {}


def shared(kind: type[Client], deadline_seconds: float) -> Client:
    """The process's client of the environment's service; a fork gets its own."""
    options: dict[str, Any] = connection(deadline_seconds)
    key = (kind, os.getpid(), *options.values())
    if key not in _clients:
        _clients[key] = kind(**options)
    return cast("Client", _clients[key])
