"""Typed results of the three endpoints, parsed strictly: a missing score is an error, never a 0."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from reward_client.errors import BadReplyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")


@dataclass(frozen=True)
class Usage:
    num_tokens: int
    num_computed_tokens: int
    num_cached_tokens: int = 0
    """Number of tokens that were in the server's prefix cache."""


@dataclass(frozen=True)
class ModelScore:
    score: float
    probability: float
    num_tokens: int
    truncated: bool
    token_scores: list[float] | None = None
    step_scores: list[float] | None = None
    """One per step, from a process reward model."""
    step_probabilities: list[float] | None = None
    step_positions: list[int] | None = None
    """For each step, the index (from 0) of the token at which the model reads the step's score."""


@dataclass(frozen=True)
class ScoreResult:
    """One item's scores, by model name."""

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
class ModelComparison:
    """One model's results for the pairs."""

    results: list[PairResult]
    summary: CompareSummary


@dataclass(frozen=True)
class Comparison:
    results: list[PairResult]
    summary: CompareSummary
    usage: Usage
    by_model: dict[str, ModelComparison] | None = None
    """Each model's results, if `models` was given; `results` and `summary` are then those of the first model."""


@dataclass(frozen=True)
class WhitenStats:
    """Count, mean and sum of squared deviations of scores; `merge_stats` merges them."""

    count: int
    mean: float
    m2: float


@dataclass(frozen=True)
class PPOResult:
    safety_score: float | None
    helpfulness_score: float | None
    selected: str | None  # None, as the next three may be, where `combine` sums the scores
    selected_score: float | None
    selected_probability: float | None
    shaped_score: float | None
    whitened: float
    kl: float | None
    num_kl_tokens: int
    reward: float
    token_rewards: list[float] | None
    truncated: bool
    parts: dict[str, dict[str, float]] | None = None
    """What each model adds to the score, by model name, in every mode of `combine` except llama2."""
    singleton: bool | None = None
    """With `singletons` zero: whether the item was whitened to 0 because there was no second score."""
    process_rewards: list[float] | None = None
    """The reward of each step, if the item has steps."""
    step_ends: list[int] | None = None
    """The index in the response (from 0) of each step's last token."""
    process_reward: float | None = None
    """The weighted sum of process_rewards, which is part of the reward."""
    scores: dict[str, float] | None = None
    """The raw scores of further models than safety and helpfulness, by name."""


@dataclass(frozen=True)
class PPORewards:
    results: list[PPOResult]
    whiten_stats: WhitenStats | dict[str, WhitenStats] | dict[str, dict[str, WhitenStats]]
    mean_kl: float | None
    usage: Usage

    @property
    def rewards(self) -> list[float]:
        return [result.reward for result in self.results]

    @property
    def token_rewards(self) -> list[list[float]]:
        """One list per item, as long as its logprobs; raises BadReplyError where they were not asked for."""
        rows = [result.token_rewards for result in self.results]
        if any(row is None for row in rows):
            raise BadReplyError("an item has no token rewards; send its logprobs, and token_rewards=True")
        return [row for row in rows if row is not None]


def read(cls: type[T], data: object) -> T:
    """A dataclass from a JSON object. Unknown keys are ignored; a missing or wrong value raises BadReplyError."""
    if not isinstance(data, dict):
        raise BadReplyError(f"{cls.__name__} is {data!r:.80}, not an object")
    values: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type] # every T here is a dataclass
        kind, _, optional = str(field.type).partition(" | ")
        if field.name not in data:
            if field.default is not MISSING:
                continue
            raise BadReplyError(f"{cls.__name__} has no {field.name}")
        value = data[field.name]
        is_null = value is None and optional == "None"
        if not is_null and not is_valid(value, kind):
            raise BadReplyError(f"{cls.__name__}.{field.name} is {value!r:.80}, not a {kind}")
        values[field.name] = value
    return cls(**values)


def is_valid(value: object, kind: str) -> bool:
    """Whether the value is of a field's type; a type that is not in CHECKS is read by the caller of `read`."""
    return kind not in CHECKS or CHECKS[kind](value)


def is_number(value: object) -> bool:
    """A finite number that a float can hold; a boolean is none."""
    if isinstance(value, bool) or not isinstance(value, float | int):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False


CHECKS: dict[str, Callable[[Any], bool]] = {
    "float": is_number,
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "list[float]": lambda value: isinstance(value, list) and all(map(is_number, value)),
    "list[int]": lambda value: isinstance(value, list) and all(map(CHECKS["int"], value)),
    "dict[str, float]": lambda value: isinstance(value, dict) and all(map(is_number, value.values())),
    "dict[str, dict[str, float]]": lambda value: (
        isinstance(value, dict) and all(isinstance(one, dict) for one in value.values())
    ),
    "dict[str, bool]": lambda value: isinstance(value, dict) and all(isinstance(one, bool) for one in value.values()),
}


def read_results(cls: type[T], reply: Mapping[str, Any], count: int) -> list[T]:
    """Exactly one result per item; fewer or more raise BadReplyError."""
    results = reply.get("results")
    if not isinstance(results, list) or len(results) != count:
        got = len(results) if isinstance(results, list) else results
        raise BadReplyError(f"{count} items were sent and {got} results came back")
    return [read(cls, result) for result in results]


def read_usage(replies: list[Mapping[str, Any]]) -> Usage:
    parts = [read(Usage, reply.get("usage")) for reply in replies]
    return Usage(
        sum(part.num_tokens for part in parts),
        sum(part.num_computed_tokens for part in parts),
        sum(part.num_cached_tokens for part in parts),
    )
