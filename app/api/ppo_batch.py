"""Converts a /ppo-reward body to the arrays of `app.rewards`, with the checks that need all items but no scores.

Imports neither torch nor the service, because the worker process imports it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from app.api.ppo_schemas import Combine, PPOItem, PPORequest, StatsByGroup, Whiten, WhitenStatsBody
from app.api.ppo_steps import Steps, read_steps
from app.errors import InvalidInputError
from app.rewards.combination import LLAMA2_MODELS, Combination, Llama2, Weighted, Worst, lagrangian
from app.rewards.pipeline import Batch, RewardOptions, Stats
from app.rewards.ragged import Logprobs
from app.rewards.types import Floats, Indices
from app.rewards.whitening import MIN_COUNT, WhitenStats

MAX_LOGPROB = 1e-3
"""A log-probability above 0 by at most this is accepted as rounding error."""


@dataclass(frozen=True, slots=True)
class PPOBatch:
    """A /ppo-reward request without its inputs and scores."""

    items: Batch
    options: RewardOptions
    group_names: list[str] | None  # (groups,) None unless the mode is group
    given_stats: Stats | None
    reports_singletons: bool  # whether results have `singleton`
    steps: Steps | None = None  # None if no item has process rewards


def read_batch(body: PPORequest, *, beta: float, safety_threshold: float) -> PPOBatch:
    """The body's items and options. `beta` and `safety_threshold` are the service's defaults.

    Raises InvalidInputError if an item lacks a field that an option needs, a counted logprob is not a log-probability, or a
    group has too few scores to whiten.
    """
    items, whiten = body.items, body.whiten
    check_required(body)
    logprobs = flatten_logprobs(items)
    steps = read_steps(body)
    groups, names = number_groups(items, whiten)
    given = given_stats(body, names)
    if whiten.mode != "none" and whiten.singletons == "error":
        for counts in counts_of(groups, given):
            check_counts(counts, names)
    return PPOBatch(
        items=Batch(
            is_safety=np.array([item.is_safety for item in items]),
            unended=np.array([item.ended is False for item in items]),
            groups=groups,
            logprobs=logprobs,
        ),
        options=RewardOptions(
            beta=body.beta if body.beta is not None else beta,
            combination=combination_of(
                body.combine, body.safety_threshold if body.safety_threshold is not None else safety_threshold
            ),
            score_clip=body.score_clip,
            missing_eos_penalty=body.missing_eos_penalty or 0.0,
            whitens=whiten.mode != "none",
            shift_mean=whiten.shift_mean,
            estimator=body.kl.estimator,
            kl_clip=body.kl.clip,
            token_rewards=body.token_rewards,
            process_weight=steps.weight if steps is not None else 1.0,
        ),
        group_names=names,
        given_stats=given,
        reports_singletons=whiten.singletons == "zero",
        steps=steps,
    )


def combination_of(combine: Combine, threshold: float) -> Combination:
    """The rule that combines scores. For llama2, `threshold` is in the unit that `threshold_on` names."""
    match combine.mode:
        case "llama2":
            return Llama2(threshold, combine.threshold_on or "probability")
        case "weighted":
            assert combine.weights is not None
            return Weighted({name: combine.weights[name] for name in combine.score_models}, bool(combine.whiten_each))
        case "lagrangian":
            assert combine.multiplier is not None
            return lagrangian(combine.multiplier)
        case "worst":
            return Worst(combine.score_models)


def check_required(body: PPORequest) -> None:
    for i, item in enumerate(body.items):
        if item.has_scores:
            check_scores(item, i, body.combine)
        if body.missing_eos_penalty is not None and item.ended is None:
            raise InvalidInputError(f"items[{i}] has no ended; missing_eos_penalty needs it for every item", i)
        if body.whiten.mode == "group" and item.group_id is None:
            raise InvalidInputError(f"items[{i}] has no group_id; whiten.mode group needs it for every item", i)


def check_scores(item: PPOItem, i: int, combine: Combine) -> None:
    """Raises InvalidInputError if an item with scores lacks one that the rule needs."""
    missing = [name for name in combine.score_models if name not in item.known_scores]
    if combine.mode == "llama2":
        if "safety" in missing:
            raise InvalidInputError(f"items[{i}] has no safety_score; it is needed to select", i)
        if missing and not item.is_safety:
            raise InvalidInputError(f"items[{i}] has no helpfulness_score; only an item with is_safety can omit it", i)
    elif missing:
        name = f"{missing[0]}_score" if missing[0] in LLAMA2_MODELS else f"scores.{missing[0]:.80}"
        is_pair = combine.score_models == LLAMA2_MODELS
        needed = "both scores" if is_pair else f"the scores of {' and '.join(combine.score_models)}"
        raise InvalidInputError(
            f"items[{i}] has no {name}; combine mode {combine.mode} needs {needed} of every item", i
        )


# -- logprobs -----------------------------------------------------------------------------------------------------------


def flatten_logprobs(items: Sequence[PPOItem]) -> Logprobs | None:
    """The concatenated logprobs of all items that have some; None if none has.

    Raises InvalidInputError for the first item whose lists differ in length, that counts no token, or whose counted
    entries are not log-probabilities.
    """
    rows = [i for i, item in enumerate(items) if item.policy_logprobs is not None]
    unequal = next((i for i in rows if len({*lengths(items[i]).values()}) > 1), None)
    whole = rows if unequal is None else rows[: rows.index(unequal)]
    logprobs = concatenate(items, whole) if whole else None
    if logprobs is not None:
        check_values(logprobs)
    if unequal is not None:
        given = ", ".join(f"{name} {length}" for name, length in lengths(items[unequal]).items())
        raise InvalidInputError(
            f"items[{unequal}] has lists of different lengths ({given}); send one entry per token", unequal
        )
    return logprobs


def lengths(item: PPOItem) -> dict[str, int]:
    lists = {name: getattr(item, name) for name in ("policy_logprobs", "reference_logprobs", "mask")}
    return {name: len(values) for name, values in lists.items() if values is not None}


def concatenate(items: Sequence[PPOItem], rows: list[int]) -> Logprobs:
    policy = [values for i in rows if (values := items[i].policy_logprobs) is not None]
    reference = [values for i in rows if (values := items[i].reference_logprobs) is not None]
    sizes = np.array([len(values) for values in policy], np.intp)
    masks = [
        mask if (mask := items[i].mask) is not None else np.ones(size, np.bool_)
        for i, size in zip(rows, sizes, strict=True)
    ]
    return Logprobs(
        policy=np.concatenate(policy),
        reference=np.concatenate(reference),
        counted=np.concatenate(masks),
        starts=np.cumsum(sizes) - sizes,
        items=np.array(rows, np.intp),
    )


def check_values(logprobs: Logprobs) -> None:
    """Raises InvalidInputError for the first item whose mask counts no token or an invalid log-probability."""
    faults: list[tuple[int, int, str]] = []  # item, order of the checks, message
    for row in np.flatnonzero(logprobs.num_counted == 0)[:1]:
        item = int(logprobs.items[row])
        faults.append((item, 0, f"items[{item}] has a mask that counts no token; count one, or send no logprobs"))
    lists = {"policy_logprobs": logprobs.policy, "reference_logprobs": logprobs.reference}
    for order, (name, values) in enumerate(lists.items(), 1):
        invalid = logprobs.counted & ~(values <= MAX_LOGPROB)  # includes NaN, which stands for null
        for token in np.flatnonzero(invalid)[:1]:
            item, position = locate(logprobs, int(token))
            value = "null" if np.isnan(values[token]) else float(values[token])
            rule = f"a counted log-probability is a number up to 0 (above by {MAX_LOGPROB:g} for rounding)"
            faults.append((item, order, f"items[{item}].{name}[{position}] is {value}; {rule}"))
    if faults:
        item, _, message = min(faults)
        raise InvalidInputError(message, item)


def locate(logprobs: Logprobs, token: int) -> tuple[int, int]:
    """The item that contains the token at an index of the flat array, and the token's position in it."""
    row = int(np.searchsorted(logprobs.starts, token, "right")) - 1
    return int(logprobs.items[row]), token - int(logprobs.starts[row])


# -- whitening groups ---------------------------------------------------------------------------------------------------


def number_groups(items: Sequence[PPOItem], whiten: Whiten) -> tuple[Indices, list[str] | None]:
    """Each item's group, numbered in order of appearance, and the groups' names; all in one unless the mode is group.

    Raises InvalidInputError for ids such as 1 and "1": they are two groups, and the keys of whiten_stats are strings.
    """
    if whiten.mode != "group":
        return np.zeros(len(items), np.intp), None
    numbers: dict[str | int | None, int] = {}
    groups = [numbers.setdefault(item.group_id, len(numbers)) for item in items]
    names: dict[str, str | int | None] = {}
    for group, number in numbers.items():
        other = names.setdefault(str(group), group)
        if other is not group:
            i, first = groups.index(number), groups.index(numbers[other])
            raise InvalidInputError(
                f"items[{i}].group_id is {group!r:.40} and items[{first}].group_id is {other!r:.40}: the keys of "
                "whiten_stats, which are strings, cannot tell these groups apart; send all group_ids as strings, or all as "
                "integers",
                i,
            )
    return np.array(groups, np.intp), list(names)


def given_stats(body: PPORequest, names: list[str] | None) -> Stats | None:
    """The statistics in the request, one per group. Raises InvalidInputError if one is missing."""
    stats = body.whiten.stats
    if stats is None:
        return None
    if not isinstance(stats, dict) or not body.combine.whitens_each:
        return stats_of(cast("WhitenStatsBody | StatsByGroup", stats), names)
    groups = names if body.whiten.mode == "group" else None
    return {model: stats_of(stats[model], groups) for model in body.combine.score_models}


def stats_of(given: WhitenStatsBody | StatsByGroup, names: list[str] | None) -> WhitenStats:
    """The statistics of the named groups in order, or of all items."""
    if isinstance(given, WhitenStatsBody):
        rows = [given]
    else:
        missing = next((name for name in names or () if name not in given), None)
        if missing is not None:
            raise InvalidInputError(f"whiten.stats has no group {missing!r}; send statistics for every group_id")
        rows = [given[name] for name in names or ()]
    return WhitenStats(
        np.array([each.count for each in rows], np.intp),
        np.array([each.mean for each in rows]),
        np.array([each.m2 for each in rows]),
    )


def counts_of(groups: Indices, given: Stats | None) -> list[Indices]:
    """The numbers of scores in each group, (groups,), per set of statistics that whitening uses."""
    if given is None:
        return [np.bincount(groups)]
    return [given.count] if isinstance(given, WhitenStats) else [each.count for each in given.values()]


def check_counts(counts: Indices, names: list[str] | None) -> None:
    """Raises InvalidInputError for the first group with fewer scores than an unbiased variance needs."""
    for group in np.flatnonzero(counts < MIN_COUNT)[:1]:
        name = f"group {names[group]!r}" if names is not None else "the batch"
        raise InvalidInputError(
            f"{name} has {counts[group]} score to whiten, and whitening needs {MIN_COUNT}; send more items, "
            "whiten.stats, or whiten.mode none (or whiten.singletons zero)"
        )


def scores_or_nan(scores: Sequence[float | None]) -> Floats:
    return np.array([np.nan if score is None else score for score in scores], np.float64)
