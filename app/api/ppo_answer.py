"""Builds the answer of /ppo-reward. Imports neither torch nor the service, because the worker process imports it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.api.bodies import write
from app.api.ppo_batch import PPOBatch, scores_or_nan
from app.api.ppo_steps import ModelSteps, PlacedSteps, place_steps
from app.errors import InvalidInputError
from app.rewards.combination import LLAMA2_MODELS
from app.rewards.logistic import sigmoid
from app.rewards.pipeline import Combined, Penalty, Rewards, Stats, compute_rewards
from app.rewards.ragged import Logprobs
from app.rewards.types import Floats
from app.rewards.whitening import WhitenStats

REMEDY = "overflows float64; send smaller scores, logprobs, beta or penalty, or set score_clip and kl.clip"


@dataclass(frozen=True, slots=True)
class ItemScores:
    """An item's raw scores by model, computed here or sent by the trainer."""

    by_model: Mapping[str, float]
    truncated: bool = False
    steps: ModelSteps | None = None


def answer(batch: PPOBatch, scores: list[ItemScores], usage: dict[str, int]) -> dict[str, Any]:
    """The fields of a `PPOResponse`. Raises InvalidInputError if one of its numbers overflows."""
    models = batch.options.combination.models
    arrays = {name: scores_or_nan([each.by_model.get(name) for each in scores]) for name in models}
    items, logprobs = batch.items, batch.items.logprobs
    steps = None
    if batch.steps is not None and logprobs is not None:
        steps = place_steps(batch.steps, [s.steps for s in scores], [s.truncated for s in scores], logprobs)
        items = replace(items, steps=steps.rewards)
    rewards = compute_rewards(items, arrays, batch.options, batch.given_stats)
    mean_kl = None
    if logprobs is not None and rewards.penalty is not None:
        check_kl(logprobs, rewards.penalty.terms, rewards.penalty.kl, batch.options.estimator)
        with np.errstate(over="ignore"):
            mean_kl = float(rewards.penalty.kl.mean())
    check_overflow(logprobs, rewards, mean_kl)
    return {
        "results": results(batch, scores, rewards, steps),
        "whiten_stats": stats_by_model(rewards.combined.stats, batch.group_names),
        "mean_kl": mean_kl,
        "usage": usage,
    }


def write_answer(batch: PPOBatch, scores: list[ItemScores], usage: dict[str, int]) -> bytes:
    """`answer` as JSON."""
    return write(answer(batch, scores, usage))


def results(
    batch: PPOBatch, scores: list[ItemScores], rewards: Rewards, steps: PlacedSteps | None
) -> list[dict[str, Any]]:
    """The fields of each item's `PPOResult`."""
    combined, logprobs = rewards.combined, batch.items.logprobs
    nothing: list[None] = [None] * len(scores)
    columns: dict[str, Sequence[Any]] = {
        **score_columns(scores),
        "selected": [combined.models[i] for i in combined.choice.tolist()] if combined.choice is not None else nothing,
        "selected_score": combined.selected.tolist() if combined.selected is not None else nothing,
        "selected_probability": sigmoid(combined.selected).tolist() if combined.selected is not None else nothing,
        "shaped_score": combined.shaped.tolist() if combined.shaped is not None else nothing,
    }
    if combined.parts is not None:
        columns["parts"] = parts(combined, combined.parts)
    columns["whitened"] = combined.whitened.tolist()
    if batch.reports_singletons:
        columns["singleton"] = combined.is_singleton.tolist()
    columns |= penalty_columns(logprobs, rewards.penalty, len(scores))
    if steps is not None:
        columns |= step_columns(steps, logprobs, rewards.penalty, len(scores))
    columns["reward"] = rewards.reward.tolist()
    columns["token_rewards"] = token_rewards(logprobs, rewards.penalty, len(scores))
    columns["truncated"] = [each.truncated for each in scores]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def score_columns(scores: list[ItemScores]) -> dict[str, Sequence[Any]]:
    """The scores of Llama 2's two models (None if missing), and those of other models."""
    columns: dict[str, Sequence[Any]] = {
        f"{name}_score": [each.by_model.get(name) for each in scores] for name in LLAMA2_MODELS
    }
    further = [{name: score for name, score in each.by_model.items() if name not in LLAMA2_MODELS} for each in scores]
    return columns | {"scores": further} if any(further) else columns


def parts(combined: Combined, contributions: Mapping[str, Floats]) -> list[dict[str, dict[str, float]]]:
    """Each item's `parts`."""
    by_model = []
    for model in combined.models:
        columns = {"contribution": contributions[model].tolist()}
        if combined.by_model is not None:
            own = combined.by_model[model]
            columns = {"shaped_score": own.shaped.tolist(), "whitened": own.whitened.tolist()} | columns
        by_model.append([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    return [dict(zip(combined.models, row, strict=True)) for row in zip(*by_model, strict=True)]


def penalty_columns(logprobs: Logprobs | None, penalty: Penalty | None, num_items: int) -> dict[str, Sequence[Any]]:
    kl: list[float | None] = [None] * num_items
    num_kl_tokens = [0] * num_items
    if logprobs is not None and penalty is not None:
        rows = zip(logprobs.items.tolist(), penalty.kl.tolist(), logprobs.num_counted.tolist(), strict=True)
        for item, item_kl, count in rows:
            kl[item], num_kl_tokens[item] = item_kl, count
    return {"kl": kl, "num_kl_tokens": num_kl_tokens}


def step_columns(
    steps: PlacedSteps, logprobs: Logprobs | None, penalty: Penalty | None, num_items: int
) -> dict[str, Sequence[Any]]:
    """The columns about process rewards; None for an item without steps."""
    nothing = (None, None)
    own = [steps.by_item.get(i, nothing) for i in range(num_items)]
    sums: list[float | None] = [None] * num_items
    if logprobs is not None and penalty is not None and penalty.process is not None:
        for item, value in zip(logprobs.items.tolist(), penalty.process.tolist(), strict=True):
            sums[item] = value if item in steps.by_item else None
    return {
        "process_rewards": [values for values, _ in own],
        "step_ends": [ends for _, ends in own],
        "process_reward": sums,
    }


def token_rewards(logprobs: Logprobs | None, penalty: Penalty | None, num_items: int) -> list[list[float] | None]:
    """Each item's token rewards; None if it has no logprobs or they were not requested."""
    by_item: list[list[float] | None] = [None] * num_items
    if logprobs is not None and penalty is not None and penalty.token_rewards is not None:
        tokens = penalty.token_rewards.tolist()
        starts = logprobs.starts.tolist()
        for item, start, end in zip(logprobs.items.tolist(), starts, [*starts[1:], len(tokens)], strict=True):
            by_item[item] = tokens[start:end]
    return by_item


def stats_by_model(stats: Stats, names: list[str] | None) -> dict[str, Any]:
    if isinstance(stats, WhitenStats):
        return stats_by_group(stats, names)
    return {model: stats_by_group(each, names) for model, each in stats.items()}


def stats_by_group(stats: WhitenStats, names: list[str] | None) -> dict[str, Any]:
    """The batch's own statistics, or a map of them by group."""
    rows = zip(stats.count.tolist(), stats.mean.tolist(), stats.m2.tolist(), strict=True)
    each = [dict(zip(("count", "mean", "m2"), row, strict=True)) for row in rows]
    return each[0] if names is None else dict(zip(names, each, strict=True))


def check_kl(logprobs: Logprobs, terms: Floats, kl: Floats, estimator: str) -> None:
    """Raises InvalidInputError for the first item whose penalty overflows, naming its largest token."""
    for row in np.flatnonzero(~np.isfinite(kl))[:1]:
        start = logprobs.starts[row]
        end = logprobs.starts[row + 1] if row + 1 < len(logprobs.starts) else len(terms)
        worst = int(np.argmax(terms[start:end]))
        item = int(logprobs.items[row])
        raise InvalidInputError(
            f"items[{item}] has a {estimator} penalty that overflows at token {worst} "
            f"(log pi {logprobs.policy[start + worst]:g}, log pi_0 {logprobs.reference[start + worst]:g}); set kl.clip",
            item,
        )


def check_overflow(logprobs: Logprobs | None, rewards: Rewards, mean_kl: float | None) -> None:
    """Raises InvalidInputError if a reward or statistic overflows float64: JSON cannot represent infinity."""
    finite = np.isfinite(rewards.reward)
    if logprobs is not None and rewards.penalty is not None and rewards.penalty.token_rewards is not None:
        finite[logprobs.items] &= np.logical_and.reduceat(np.isfinite(rewards.penalty.token_rewards), logprobs.starts)
    for item in np.flatnonzero(~finite)[:1].tolist():
        raise InvalidInputError(f"items[{item}] has a reward that {REMEDY}", item)
    stats = rewards.combined.stats
    each = [stats] if isinstance(stats, WhitenStats) else list(stats.values())
    if not np.isfinite(
        np.concatenate([[mean_kl or 0.0], *(part for one in each for part in (one.mean, one.m2))])
    ).all():
        raise InvalidInputError(f"the request has a sum over its items that {REMEDY}")
