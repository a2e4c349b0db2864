"""Typed results: what the three endpoints answer, read strictly, so that a missing score is an error and never a 0."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from reward_client.errors import BadReplyError

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


@dataclass(frozen=True)
class Usage:
    num_tokens: int
    num_computed_tokens: int


@dataclass(frozen=True)
class ModelScore:
    score: float
    probability: float
    num_tokens: int
    truncated: bool
    token_scores: list[float] | None = None


@dataclass(frozen=True)
class ScoreResult:
    """One item's scores, by model."""

    scores: dict[str, ModelScore]


@dataclass(frozen=True)
class Scores:
    results: list[ScoreResult]
    usage: Usage

    def of(self, model: str) -> list[float]:
        """The raw scores of one model, in order."""
        return [result.scores[model].score for result in self.results]


@dataclass(frozen=True)
class PairResult:
    chosen_score: float
    rejected_score: float
    margin: float
    probability: float
    loss: float
    loss_with_margin: float
    grad_chosen: float
    grad_rejected: float
    correct: bool
    truncated: dict[str, bool]


@dataclass(frozen=True)
class CompareSummary:
    loss: float
    loss_with_margin: float
    accuracy: float
    accuracy_by_rating: dict[str, float]
    count: int


@dataclass(frozen=True)
class Comparison:
    results: list[PairResult]
    summary: CompareSummary
    usage: Usage


@dataclass(frozen=True)
class WhitenStats:
    """Count, mean and sum of squared deviations; `merge_stats` adds them up."""

    count: int
    mean: float
    m2: float


@dataclass(frozen=True)
class PPOResult:
    safety_score: float | None
    helpfulness_score: float | None
    selected: str
    selected_score: float
    selected_probability: float
    shaped_score: float
    whitened: float
    kl: float | None
    num_kl_tokens: int
    reward: float
    token_rewards: list[float] | None
    truncated: bool


@dataclass(frozen=True)
class PPORewards:
    results: list[PPOResult]
    whiten_stats: WhitenStats | dict[str, WhitenStats]
    mean_kl: float | None
    usage: Usage

    @property
    def rewards(self) -> list[float]:
        return [result.reward for result in self.results]

    @property
    def token_rewards(self) -> list[list[float]]:
        """A list an item, as long as its logprobs; raises BadReplyError where they were not asked for."""
        rows = [result.token_rewards for result in self.results]
        if any(row is None for row in rows):
            raise BadReplyError("an item has no token rewards; send its logprobs, and token_rewards=True")
        return [row for row in rows if row is not None]


CHECKS: dict[str, tuple[type, ...]] = {"float": (float, int), "int": (int,), "bool": (bool,), "str": (str,)}


def read(cls: type[T], data: object) -> T:
    """A dataclass from a JSON object. Keys that it does not know are left out; a missing or wrong one raises BadReplyError."""
    if not isinstance(data, dict):
        raise BadReplyError(f"{cls.__name__} is {data!r:.80}, not an object")
    values: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type] # every T here is a dataclass
        kind, _, optional = str(field.type).partition(" | ")
        if field.name not in data:
            if optional == "None" and field.default is None:
                continue
            raise BadReplyError(f"{cls.__name__} has no {field.name}")
        value = data[field.name]
        allowed = CHECKS.get(kind)
        is_missing = value is None and optional == "None"
        if allowed and not is_missing and not is_valid(value, allowed):
            raise BadReplyError(f"{cls.__name__}.{field.name} is {value!r:.80}, not a {kind}")
        values[field.name] = value
    return cls(**values)


def is_valid(value: object, allowed: tuple[type, ...]) -> bool:
    """Of one of the types, a bool counted as nothing else, and finite."""
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed) and (not isinstance(value, float) or math.isfinite(value))


def read_results(cls: type[T], reply: Mapping[str, Any], count: int) -> list[T]:
    """Exactly one result an item; fewer or more raise BadReplyError."""
    results = reply.get("results")
    if not isinstance(results, list) or len(results) != count:
        got = len(results) if isinstance(results, list) else results
        raise BadReplyError(f"{count} items were sent and {got} results came back")
    return [read(cls, result) for result in results]


def read_usage(replies: list[Mapping[str, Any]]) -> Usage:
    parts = [read(Usage, reply.get("usage")) for reply in replies]
    return Usage(sum(part.num_tokens for part in parts), sum(part.num_computed_tokens for part in parts))
