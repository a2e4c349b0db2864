"""From scores and logprobs to what PPO receives: combine, shape, whiten, subtract the KL penalty. All items at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from app.rewards.combination import Combination, Llama2, Weighted, whitens_each
from app.rewards.kl import Estimator, kl_terms
from app.rewards.process import StepRewards
from app.rewards.ragged import Logprobs, token_rewards
from app.rewards.selection import selects_safety
from app.rewards.types import Bools, Floats, Indices
from app.rewards.whitening import MIN_COUNT, WhitenStats, whiten

Stats = WhitenStats | dict[str, WhitenStats]
"""Statistics of the combined scores; or, if each model's scores are whitened, those of each model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is known about each response before it is scored."""

    is_safety: Bools  # (items,) whether its prompt is a safety prompt
    unended: Bools  # (items,) whether it stopped before its EOS
    groups: Indices  # (items,) its whitening group, numbered from 0 without gaps
    logprobs: Logprobs | None  # None where no item has any
    steps: StepRewards | None = None  # None where no item has process rewards; their tokens are those of `logprobs`


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOptions:
    beta: float
    combination: Combination
    score_clip: tuple[float, float] | None = None
    missing_eos_penalty: float = 0.0
    whitens: bool = True
    shift_mean: bool = True
    estimator: Estimator = "k1"
    kl_clip: float | None = None
    token_rewards: bool = False
    process_weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Whitened:
    """Scores clipped, less the penalty for a missing EOS, and whitened."""

    shaped: Floats  # (items,)
    stats: WhitenStats  # (groups,) the batch's own, of `shaped`
    whitened: Floats  # (items,)
    is_singleton: Bools  # (items,) whether it is whitened with statistics of fewer than two scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """One whitened score per item, and how it was computed."""

    models: tuple[str, ...]  # whose scores are combined
    choice: Indices | None  # (items,) index of the selected model; None if the scores are summed
    selected: Floats | None  # (items,) the raw score of that model
    shaped: Floats | None  # (items,) None if only the individual models' scores are shaped
    whitened: Floats  # (items,)
    is_singleton: Bools  # (items,)
    stats: Stats
    by_model: dict[str, Whitened] | None  # if each model's scores are whitened
    parts: dict[str, Floats] | None  # (items,) each model's share of the combined score; None for Llama 2's


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalty:
    """The KL penalty and step rewards of the items with logprobs."""

    terms: Floats  # (tokens,) the estimator at counted tokens, 0 elsewhere
    kl: Floats  # (rows,) its sum
    token_rewards: Floats | None  # (tokens,)
    process: Floats | None  # (rows,) the weighted sum of the steps' rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    combined: Combined
    penalty: Penalty | None  # None where no item has logprobs
    reward: Floats  # (items,)


@np.errstate(over="ignore", invalid="ignore")
def compute_rewards(
    batch: Batch, scores: Mapping[str, Floats], options: RewardOptions, given: Stats | None = None
) -> Rewards:
    """R(g|p) = WHITEN(LOGIT(R_c(g|p))) - beta * D_KL(pi || pi_0) (Touvron et al. 2023, arXiv 2307.09288, section 3.2.3).

    With steps, their weighted rewards w * sum_k r_k are added (`StepRewards`).

    `scores`: raw scores by model, each (items,); helpfulness may be NaN for items that do not need it. R_c is Llama 2's
    selection, or another combination of the scores. `given`: statistics to whiten with instead of the batch's own, one per group.
    """
    combined = combine(batch, scores, options, given)
    if batch.logprobs is None:
        return Rewards(combined=combined, penalty=None, reward=combined.whitened)
    rows = batch.logprobs.items
    penalty = penalize(batch.logprobs, combined.whitened[rows], options, batch.steps)
    reward = combined.whitened.copy()
    reward[rows] -= options.beta * penalty.kl
    if penalty.process is not None:
        reward[rows] += penalty.process
    return Rewards(combined=combined, penalty=penalty, reward=reward)


def combine(batch: Batch, scores: Mapping[str, Floats], options: RewardOptions, given: Stats | None) -> Combined:
    """Combines each item's scores into one and whitens it."""
    rule = options.combination
    if whitens_each(rule):
        return combine_whitened(batch, scores, options, given)
    choice = selected = parts = None
    if isinstance(rule, Llama2):
        takes_safety = selects_safety(scores["safety"], batch.is_safety, rule.threshold, rule.threshold_on)
        choice = np.where(takes_safety, 0, 1)  # of LLAMA2_MODELS
        combined = selected = chosen(choice, [scores[name] for name in rule.models])
    else:
        assert isinstance(rule, Weighted)
        parts = rule.parts(scores)
        combined = total(parts)
    assert not isinstance(given, dict)
    own = shape_and_whiten(combined, batch, options, given)
    return Combined(
        models=rule.models,
        choice=choice,
        selected=selected,
        shaped=own.shaped,
        whitened=own.whitened,
        is_singleton=own.is_singleton,
        stats=own.stats,
        by_model=None,
        parts=parts,
    )


def combine_whitened(
    batch: Batch, scores: Mapping[str, Floats], options: RewardOptions, given: Stats | None
) -> Combined:
    """As `combine`, for rules that whiten each model's scores over the groups first."""
    assert not isinstance(given, WhitenStats)
    rule = options.combination
    each = {
        name: shape_and_whiten(scores[name], batch, options, given[name] if given is not None else None)
        for name in rule.models
    }
    whitened = {name: own.whitened for name, own in each.items()}
    choice = selected = shaped = None
    if isinstance(rule, Weighted):
        parts = rule.parts(whitened)
    else:
        choice = np.argmin(np.stack(list(whitened.values())), axis=0)
        selected = chosen(choice, [scores[name] for name in rule.models])
        shaped = chosen(choice, [own.shaped for own in each.values()])
        parts = {name: np.where(choice == i, own, 0.0) for i, (name, own) in enumerate(whitened.items())}
    return Combined(
        models=rule.models,
        choice=choice,
        selected=selected,
        shaped=shaped,
        whitened=total(parts),
        is_singleton=np.logical_or.reduce([own.is_singleton for own in each.values()]),
        stats={name: own.stats for name, own in each.items()},
        by_model=each,
        parts=parts,
    )


def chosen(choice: Indices, scores: Sequence[Floats]) -> Floats:
    """For each item, the score of its chosen model; (items,)."""
    picked: Floats = np.stack(scores)[choice, np.arange(len(choice))]
    return picked


def total(parts: Mapping[str, Floats]) -> Floats:
    return reduce(np.add, parts.values())


def shape_and_whiten(scores: Floats, batch: Batch, options: RewardOptions, given: WhitenStats | None) -> Whitened:
    """clip(score) - penalty * [no EOS], then whitened over the groups; (items,)."""
    shaped = scores if options.score_clip is None else np.clip(scores, *options.score_clip)
    shaped = shaped - options.missing_eos_penalty * batch.unended
    own = WhitenStats.of(shaped, batch.groups)
    used = own if given is None else given
    return Whitened(
        shaped=shaped,
        stats=own,
        whitened=whiten(shaped, used, batch.groups, shift_mean=options.shift_mean) if options.whitens else shaped,
        is_singleton=(used.count < MIN_COUNT)[batch.groups],
    )


def penalize(logprobs: Logprobs, whitened: Floats, options: RewardOptions, steps: StepRewards | None = None) -> Penalty:
    """The penalties of the rows; `whitened` is (rows,)."""
    policy = np.where(logprobs.counted, logprobs.policy, 0.0)
    reference = np.where(logprobs.counted, logprobs.reference, 0.0)
    terms = kl_terms(policy, reference, options.estimator, options.kl_clip)
    rewards = token_rewards(whitened, terms, logprobs, options.beta) if options.token_rewards else None
    process = steps.by_row(len(logprobs.items), options.process_weight) if steps is not None else None
    if steps is not None and rewards is not None:
        rewards += steps.by_token(len(terms), options.process_weight)
    return Penalty(terms=terms, kl=logprobs.sums(terms), token_rewards=rewards, process=process)
