"""The steps of a /ppo-reward request: which token of a response each ends at, and its reward.

Knows neither torch nor the service: the worker process imports it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from app.api.ppo_schemas import PPOItem, PPORequest
from app.errors import InvalidInputError
from app.rewards.logistic import sigmoid
from app.rewards.process import StepRewards
from app.rewards.ragged import Logprobs


@dataclass(frozen=True, slots=True)
class ItemSteps:
    """What an item says of its steps; the model says what it leaves out."""

    rewards: list[float] | None
    ends: list[int] | None  # tokens of the response, counted from 0


@dataclass(frozen=True, slots=True)
class ModelSteps:
    """What a process reward model says of an item's steps."""

    scores: list[float]
    are_probabilities: bool
    before_end: list[int]  # tokens of the sequence, counted from its end: -1 is the last


@dataclass(frozen=True, slots=True)
class Steps:
    """A request's steps before the items are scored."""

    items: list[ItemSteps | None]  # None for an item without
    weight: float
    on_probability: bool  # whether a model's scores become probabilities


def read_steps(body: PPORequest) -> Steps | None:
    """None where no item has any. Raises InvalidInputError for an item that lacks what its steps need."""
    by_model = body.process is not None and body.process.model is not None
    items = [steps_of_item(item, i, by_model=by_model) for i, item in enumerate(body.items)]
    if body.process is None:
        return Steps(items, 1.0, on_probability=False) if any(items) else None
    if not any(items):
        raise InvalidInputError("process is given and no item has process_rewards; send them, or name a process.model")
    return Steps(items, body.process.weight, on_probability=body.process.on == "probability")


def steps_of_item(item: PPOItem, i: int, *, by_model: bool) -> ItemSteps | None:
    if item.process_rewards is None and not by_model:
        if item.step_ends is not None:
            raise InvalidInputError(
                f"items[{i}] has step_ends but no process_rewards; send them, or name a process.model", i
            )
        return None
    if item.policy_logprobs is None:
        raise InvalidInputError(
            f"items[{i}] has no logprobs; process rewards belong to the tokens that these are of", i
        )
    if item.process_rewards is None:
        if item.has_scores:
            raise InvalidInputError(
                f"items[{i}] has scores and no process_rewards, and process.model scores no item with scores", i
            )
        if item.input_ids is None and item.step_ends is None:
            raise InvalidInputError(
                f"items[{i}] has no step_ends, and only for input_ids is it known which tokens are the response's; send step_ends",
                i,
            )
        return ItemSteps(None, item.step_ends)
    if item.step_ends is None or len(item.step_ends) != len(item.process_rewards):
        given = "no" if item.step_ends is None else len(item.step_ends)
        raise InvalidInputError(
            f"items[{i}] has {len(item.process_rewards)} process_rewards and {given} step_ends; send one end per step",
            i,
        )
    return ItemSteps(item.process_rewards, item.step_ends)


@dataclass(frozen=True, slots=True)
class PlacedSteps:
    """The steps of the items that have some: rewards and tokens per item, and all of them for the arithmetic."""

    by_item: dict[int, tuple[list[float], list[int]]]
    rewards: StepRewards


def place_steps(
    steps: Steps, found: Sequence[ModelSteps | None], truncated: Sequence[bool], logprobs: Logprobs
) -> PlacedSteps:
    """Each step's reward and token; `found` has what a model says of each item, if one was asked.

    Raises InvalidInputError for the first item whose steps do not fit its tokens.
    """
    rows = {item: row for row, item in enumerate(logprobs.items.tolist())}
    ends_of_rows = [*logprobs.starts[1:].tolist(), len(logprobs.policy)]
    by_item: dict[int, tuple[list[float], list[int]]] = {}
    flat: list[tuple[float, int, int]] = []
    for i, own in enumerate(steps.items):
        if own is None:
            continue
        row = rows[i]
        start, end = int(logprobs.starts[row]), ends_of_rows[row]
        values, tokens = known_steps(own, i, found[i], end - start, steps, is_truncated=truncated[i])
        check_ends(tokens, i, logprobs.counted[start:end].tolist())
        by_item[i] = values, tokens
        flat += [(value, start + token, row) for value, token in zip(values, tokens, strict=True)]
    values_, tokens_, rows_ = zip(*flat, strict=True) if flat else ((), (), ())
    return PlacedSteps(
        by_item, StepRewards(np.array(values_, np.float64), np.array(tokens_, np.intp), np.array(rows_, np.intp))
    )


def known_steps(
    own: ItemSteps, i: int, found: ModelSteps | None, num_tokens: int, steps: Steps, *, is_truncated: bool
) -> tuple[list[float], list[int]]:
    """The item's rewards and their tokens. Steps that a model finds in the prompt are left out."""
    if own.rewards is not None:
        assert own.ends is not None
        return own.rewards, own.ends
    assert found is not None
    values = found.scores
    if steps.on_probability and not found.are_probabilities:
        values = sigmoid(np.array(values)).tolist()
    if own.ends is not None:
        if len(own.ends) != len(values):
            raise InvalidInputError(
                f"items[{i}] has {len(own.ends)} step_ends and the model reads {len(values)} steps; send one end per step token",
                i,
            )
        return values, own.ends
    if is_truncated:
        raise InvalidInputError(
            f"items[{i}] was truncated, so the tokens of its steps are not known; send step_ends", i
        )
    placed = [(value, num_tokens + place) for value, place in zip(values, found.before_end, strict=True)]
    in_response = [(value, token) for value, token in placed if token >= 0]
    return [value for value, _ in in_response], [token for _, token in in_response]


def check_ends(ends: Sequence[int], i: int, counted: Sequence[bool]) -> None:
    for place, end in enumerate(ends):
        if not 0 <= end < len(counted):
            raise InvalidInputError(
                f"items[{i}].step_ends[{place}] is {end} and the response has {len(counted)} tokens; count them from 0",
                i,
            )
        if not counted[end]:
            raise InvalidInputError(
                f"items[{i}] has a step that ends at token {end}, which the mask does not count; name a counted token",
                i,
            )
    for before, after in pairwise(ends):
        if after <= before:
            raise InvalidInputError(f"items[{i}].step_ends has {after} after {before}; list the steps in order", i)
