"""The steps of a /ppo-reward request: the token of the response that each ends at, and its reward.

Imports neither torch nor the service, because the worker process imports it.
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
    """The steps that an item declares; the process reward model provides what is None."""

    rewards: list[float] | None
    ends: list[int] | None  # tokens of the response, counted from 0


@dataclass(frozen=True, slots=True)
class ModelSteps:
    """A process reward model's result for an item's steps."""

    scores: list[float]
    are_probabilities: bool
    before_end: list[int]  # the steps' token positions, counted from the sequence's end: -1 is the last


@dataclass(frozen=True, slots=True)
class Steps:
    """A request's steps before the items are scored."""

    items: list[ItemSteps | None]  # None for an item without steps
    weight: float
    on_probability: bool  # whether the model's step scores are turned into probabilities


def read_steps(body: PPORequest) -> Steps | None:
    """The steps of all items; None if no item has any. Raises InvalidInputError for an item with incomplete steps."""
    by_model = body.process is not None and body.process.model is not None
    items = [steps_of_item(item, i, by_model=by_model) for i, item in enumerate(body.items)]
    if body.process is None:
        return Steps(items, 1.0, on_probability=False) if any(items) else None
    if not any(items):
        raise InvalidInputError("process is given, but no item has process_rewards; send them, or name a process.model")
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
            f"items[{i}] has no logprobs, whose tokens the process rewards are added to; send policy_logprobs and "
            "reference_logprobs",
            i,
        )
    if item.process_rewards is None:
        if item.has_scores:
            raise InvalidInputError(
                f"items[{i}] has scores, so process.model does not score it; send its process_rewards too, or an input instead",
                i,
            )
        if item.input_ids is None and item.step_ends is None:
            raise InvalidInputError(
                f"items[{i}] has no step_ends, and the response's tokens are known only for input_ids; send step_ends",
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
    """The steps by item (rewards and token indices), and the same as flat arrays for the computation."""

    by_item: dict[int, tuple[list[float], list[int]]]
    rewards: StepRewards


def place_steps(
    steps: Steps, found: Sequence[ModelSteps | None], truncated: Sequence[bool], logprobs: Logprobs
) -> PlacedSteps:
    """Each step's reward and token. `found` has the process reward model's result for each item, if there is one.

    Raises InvalidInputError for the first item whose steps do not match its tokens.
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
    """The item's step rewards and their tokens, without steps that the model finds in the prompt."""
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
                f"items[{i}] has {len(own.ends)} step_ends, but the model reads {len(values)} steps; send one end per step token",
                i,
            )
        return values, own.ends
    if is_truncated:
        raise InvalidInputError(f"items[{i}] was truncated, so the tokens of its steps are unknown; send step_ends", i)
    placed = [(value, num_tokens + offset) for value, offset in zip(values, found.before_end, strict=True)]
    in_response = [(value, token) for value, token in placed if token >= 0]
    return [value for value, _ in in_response], [token for _, token in in_response]


def check_ends(ends: Sequence[int], i: int, counted: Sequence[bool]) -> None:
    for index, end in enumerate(ends):
        if not 0 <= end < len(counted):
            raise InvalidInputError(
                f"items[{i}].step_ends[{index}] is {end} and the response has {len(counted)} tokens; count them from 0",
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
