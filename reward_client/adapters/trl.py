"""TRL 1.x: async reward functions for `GRPOTrainer` and `RLOOTrainer`.

    GRPOTrainer(..., reward_funcs=reward_function("http://127.0.0.1:8000"))
    GRPOTrainer(..., reward_funcs=gdpo_reward_functions("http://127.0.0.1:8000"),
                args=GRPOConfig(multi_objective_aggregation="normalize_then_sum", reward_weights=[0.3, 0.7]))

Each call scores the whole batch in one request. Rewards are raw, since the trainer itself normalises within its groups.
A column `is_safety` of the dataset marks safety prompts. An item that can never be scored (too long, invalid) gets
None, which TRL leaves out; a service that does not answer raises an exception.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from reward_client.adapters.source import Choice, Item, Reward, item_of
from reward_client.adapters.token_ids import TokenIds, check_scores
from reward_client.async_client import AsyncRewardClient
from reward_client.errors import InvalidItemError, InvalidRequestError, renumber

logger = logging.getLogger(__name__)

RewardFunction = Callable[..., Coroutine[Any, Any, "list[float | None]"]]
Answers = list["Reward | None"]


def reward_function(
    client: AsyncRewardClient | str = "http://127.0.0.1:8000",
    *,
    model: str = "llama2",
    truncation: str = "prompt",
    rendered: bool = False,
    tokenizer: Any = None,
    deadline_seconds: float = 180.0,
    name: str = "reward_service",
) -> RewardFunction:
    """A function for `reward_funcs`; TRL's logs call it `name`.

    The service renders string prompts with its chat template, unless they are already `rendered`. `client` is a client, which
    the caller closes, or an address; then each call opens and closes its own connections, and each of its requests takes
    at most `deadline_seconds`. See `log_answers` for what it logs.

    tokenizer: the policy's, if the reward model has the same tokenizer and chat template. TRL's token ids are then scored instead
    of the text. The first call raises ConfigurationError unless the service gives both forms of one conversation the same
    score. If an input is too long, its oldest tokens are dropped, since ids do not show where the prompt ends.
    """
    batch = Batch(client, Choice(model, truncation), rendered, tokenizer, deadline_seconds, name)

    async def reward(**columns: Any) -> list[float | None]:
        return [None if answer is None else answer.value for answer in await batch.score(**columns)]

    reward.__name__ = name
    return reward


def gdpo_reward_functions(
    client: AsyncRewardClient | str = "http://127.0.0.1:8000",
    *,
    truncation: str = "prompt",
    rendered: bool = False,
    tokenizer: Any = None,
    deadline_seconds: float = 180.0,
    name: str = "reward_service",
) -> list[RewardFunction]:
    """The functions `safety` and `helpfulness`, each model's raw scores, for GDPO: TRL normalises each separately, then sums them
    (`multi_objective_aggregation="normalize_then_sum"`; `reward_weights` in this order).

    The two share one request per batch. The service must have both models, else it returns an error. The options are those of `reward_function`.
    """
    shared = SharedAnswers(
        Batch(client, BothModels(truncation=truncation), rendered, tokenizer, deadline_seconds, name)
    )

    def function_of(model: str) -> RewardFunction:
        async def reward(**columns: Any) -> list[float | None]:
            answers = await shared.read(model, columns)
            return [None if answer is None else answer.extra[f"{model}_score"] for answer in answers]

        reward.__name__ = model
        return reward

    return [function_of("safety"), function_of("helpfulness")]


class BothModels(Choice):
    """Asks for both models' scores and selects none of them."""

    async def ascore(self, client: AsyncRewardClient, items: Sequence[Item]) -> list[Reward]:
        bare = [{key: value for key, value in item.items() if key != "is_safety"} for item in items]
        scores = await client.score(
            bare, models=["safety", "helpfulness"], truncation=self.options(items)["truncation"]
        )
        by_model = [(result.scores["safety"], result.scores["helpfulness"]) for result in scores.results]
        return [
            Reward(
                math.nan,
                {
                    "safety_score": safety.score,
                    "helpfulness_score": helpfulness.score,
                    "selected_safety": math.nan,
                    "truncated": float(safety.truncated or helpfulness.truncated),
                },
            )
            for safety, helpfulness in by_model
        ]


class Batch:
    """Scores what TRL passes to a reward function."""

    def __init__(
        self,
        client: AsyncRewardClient | str,
        choice: Choice,
        rendered: bool,
        tokenizer: Any,
        deadline_seconds: float,
        name: str,
    ) -> None:
        self.client = client
        self.choice = choice
        self.rendered = rendered
        self.ids = None if tokenizer is None else TokenIds(tokenizer)
        self.is_checked = False
        self.deadline_seconds = deadline_seconds
        self.name = name

    async def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        is_safety: Sequence[bool] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: Any,
    ) -> Answers:
        """One answer per completion, None for an invalid one."""
        labels = [bool(label) for label in is_safety] if is_safety is not None else [False] * len(prompts)
        items = self.items(prompts, completions, completion_ids, labels)
        if isinstance(self.client, AsyncRewardClient):
            answers = await self.answers(self.client, items)
        else:
            async with AsyncRewardClient(self.client, deadline_seconds=self.deadline_seconds) as own:
                answers = await self.answers(own, items)
        log_answers(self.name, answers, labels, log_metric, log_extra)
        return answers

    def items(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any, labels: Sequence[bool]
    ) -> list[Item]:
        if self.ids is None or completion_ids is None:
            return [
                item_of(prompt, completion, rendered=self.rendered, is_safety=label)
                for prompt, completion, label in zip(prompts, completions, labels, strict=True)
            ]
        return [
            self.ids.item(self.ids.prompt_ids(prompt, rendered=self.rendered), ids, is_safety=label)
            for prompt, ids, label in zip(prompts, completion_ids, labels, strict=True)
        ]

    async def answers(self, client: AsyncRewardClient, items: list[Item]) -> Answers:
        if self.ids is not None and not self.is_checked:
            check_scores(await client.score(self.ids.probe()))
            self.is_checked = True
        return await answers_of(client, self.choice, items)


class SharedAnswers:
    """One request for several functions that TRL calls with the same batch, in one event loop."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.completions: Any = None
        self.task: asyncio.Task[Answers] | None = None
        self.readers: set[str] = set()

    async def read(self, reader: str, columns: dict[str, Any]) -> Answers:
        """The answers for these completions. No reader gets the same answers twice."""
        if self.task is None or self.completions is not columns["completions"] or reader in self.readers:
            self.completions = columns["completions"]
            self.task = asyncio.ensure_future(self.batch.score(**columns))
            self.readers = set()
        self.readers.add(reader)
        return await self.task


async def answers_of(client: AsyncRewardClient, choice: Choice, items: list[Item]) -> Answers:
    """One answer per item, None for an item that is itself invalid.

    An error names one item. The function leaves that item out and sends the rest again, so `k` invalid items cost `k` requests
    that are rejected before scoring, and one that is scored.
    """
    answers: Answers = [None] * len(items)
    left = list(range(len(items)))
    while left:
        try:
            scored = await choice.ascore(client, [items[i] for i in left])
        except (InvalidItemError, InvalidRequestError) as error:
            if error.item is None or not 0 <= error.item < len(left):
                raise
            index = left.pop(error.item)
            logger.warning("completion %d has no reward: %s", index, renumber(str(error), error.item, index))
        else:
            for i, answer in zip(left, scored, strict=True):
                answers[i] = answer
            break
    return answers


def log_answers(
    name: str,
    answers: Answers,
    labels: Sequence[bool],
    log_metric: Callable[[str, float], None] | None,
    log_extra: Callable[[str, list[Any]], None] | None,
) -> None:
    """Logs each model's score, whether the safety score was selected, whether it was by veto (the prompt is not marked as a
    safety prompt), and whether the input was truncated: means over the scored completions as metrics `name/...`, and one value
    per completion, None for an invalid one, as columns of TRL's table of completions.
    """
    rows = [
        None if answer is None else answer.extra | {"veto": veto(answer, is_safety=label)}
        for answer, label in zip(answers, labels, strict=True)
    ]
    for key in ("safety_score", "helpfulness_score", "selected_safety", "veto", "truncated"):
        values = [None if row is None or math.isnan(row[key]) else row[key] for row in rows]
        known = [value for value in values if value is not None]
        if known and log_metric is not None:
            log_metric(f"{name}/{key}", sum(known) / len(known))
        if known and log_extra is not None:
            log_extra(f"{name}/{key}", values)


def veto(answer: Reward, *, is_safety: bool) -> float:
    """Whether the safety score was selected because it is low; NaN if only one model ran, or nothing was selected."""
    if any(math.isnan(answer.extra[key]) for key in ("safety_score", "helpfulness_score", "selected_safety")):
        return math.nan
    return float(answer.extra["selected_safety"] and not is_safety)
