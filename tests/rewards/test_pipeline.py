"""Properties of whole batches: order, splitting, shifts, and where the penalty goes."""

import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.rewards.combination import Combination, Llama2, Weighted, Worst, lagrangian
from app.rewards.kl import Estimator
from app.rewards.pipeline import Batch, RewardOptions, Rewards, compute_rewards
from app.rewards.ragged import Logprobs
from app.rewards.types import Floats
from app.rewards.whitening import WhitenStats

fast = settings(max_examples=50, deadline=None)
RULES: list[Combination] = [
    Llama2(),
    Llama2(0.15, "score"),
    Weighted({"safety": 0.3, "helpfulness": 0.7}),
    Weighted({"safety": 0.3, "helpfulness": 0.7}, whiten_each=True),
    lagrangian(1.2),
    Worst(),
]
score = st.floats(-10, 10)
logprob = st.floats(-20, 0)
tokens = st.lists(st.tuples(logprob, logprob, st.booleans()), min_size=1, max_size=6).map(
    lambda row: [*row, (-1.0, -0.5, True)]
)
Item = tuple[float, float, bool, bool, int, Any]  # safety, helpfulness, is_safety, unended, group, tokens or None
items = st.lists(
    st.tuples(score, score, st.booleans(), st.booleans(), st.integers(0, 2), st.none() | tokens),
    min_size=2,
    max_size=12,
)
rules = pytest.mark.parametrize("rule", RULES, ids=repr)


def batch_of(rows: list[Item]) -> tuple[Batch, dict[str, Floats]]:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(row[4] for row in rows))}
    kept = [(i, row[5]) for i, row in enumerate(rows) if row[5] is not None]
    logprobs = None
    if kept:
        policy, reference, counted = (
            np.array(column) for column in zip(*(t for _, row in kept for t in row), strict=True)
        )
        sizes = np.array([len(row) for _, row in kept])
        logprobs = Logprobs(policy, reference, counted, np.cumsum(sizes) - sizes, np.array([i for i, _ in kept]))
    batch = Batch(
        is_safety=np.array([row[2] for row in rows]),
        unended=np.array([row[3] for row in rows]),
        groups=np.array([numbers[row[4]] for row in rows]),
        logprobs=logprobs,
    )
    return batch, {"safety": np.array([row[0] for row in rows]), "helpfulness": np.array([row[1] for row in rows])}


def rewards_of(rows: list[Item], rule: Combination, **options: Any) -> Rewards:
    batch, scores = batch_of(rows)
    return compute_rewards(batch, scores, RewardOptions(beta=0.1, combination=rule, token_rewards=True, **options))


def near(values: Floats) -> Any:
    """Whitening can magnify rounding by 1e4."""
    return pytest.approx(values.tolist(), rel=1e-9, abs=1e-7)


@rules
@given(rows=items, source=st.randoms())
@fast
def test_the_order_of_the_items_does_not_matter(rule: Combination, rows: list[Item], source: Any) -> None:
    order = list(range(len(rows)))
    source.shuffle(order)
    # where two whitened scores tie but for rounding, `worst` may name either; their value is the same
    rewards, shuffled = rewards_of(rows, rule).reward, rewards_of([rows[i] for i in order], rule).reward
    assert shuffled.tolist() == near(rewards[order])


@rules
@given(rows=items)
@fast
def test_token_rewards_sum_to_the_reward(rule: Combination, rows: list[Item]) -> None:
    rewards = rewards_of(rows, rule)
    batch, _ = batch_of(rows)
    assert (rewards.penalty is None) == (batch.logprobs is None)
    if batch.logprobs is None or rewards.penalty is None or rewards.penalty.token_rewards is None:
        return
    sums = batch.logprobs.sums(rewards.penalty.token_rewards)
    assert sums.tolist() == pytest.approx(rewards.reward[batch.logprobs.items].tolist(), abs=1e-9)
    assert not rewards.penalty.token_rewards[~batch.logprobs.counted].any()


@pytest.mark.parametrize("rule", [rule for rule in RULES if not isinstance(rule, Llama2)], ids=repr)
@given(rows=items, shift=st.floats(-100, 100))
@fast
def test_a_shift_of_all_scores_changes_no_reward(rule: Combination, rows: list[Item], shift: float) -> None:
    moved: list[Item] = [(s + shift, h + shift, *rest) for s, h, *rest in rows]
    assert rewards_of(moved, rule).reward.tolist() == pytest.approx(rewards_of(rows, rule).reward.tolist(), abs=1e-6)


@given(rows=items, shift=st.floats(-100, 100))
@fast
def test_a_shift_with_its_threshold_changes_no_reward(rows: list[Item], shift: float) -> None:
    """Llama 2's selection compares the safety score, so the threshold moves along; a score at the very threshold aside."""
    rows = [row for row in rows if abs(row[0] - 0.15) > 1e-9] or [(1.0, 1.0, False, False, 0, None)]
    moved: list[Item] = [(s + shift, h + shift, *rest) for s, h, *rest in rows]
    before = rewards_of(rows, Llama2(0.15, "score")).reward
    after = rewards_of(moved, Llama2(0.15 + shift, "score")).reward
    assert after.tolist() == pytest.approx(before.tolist(), abs=1e-6)


def merge(a: Any, b: Any) -> Any:
    return a.merge(b) if isinstance(a, WhitenStats) else {model: a[model].merge(b[model]) for model in a}


@rules
@given(rows=items, cut=st.integers(1, 11))
@fast
def test_two_parts_with_merged_statistics_are_rewarded_like_the_whole(
    rule: Combination, rows: list[Item], cut: int
) -> None:
    cut = min(cut, len(rows) - 1)
    rows = [(*row[:4], 0, row[5]) for row in rows]
    options = RewardOptions(beta=0.1, combination=rule)
    parts = [batch_of(rows[:cut]), batch_of(rows[cut:])]
    stats = merge(*(compute_rewards(batch, scores, options).combined.stats for batch, scores in parts))
    apart = [compute_rewards(batch, scores, options, stats).reward for batch, scores in parts]
    assert np.concatenate(apart).tolist() == near(rewards_of(rows, rule).reward)


@pytest.mark.parametrize("estimator", get_args(Estimator))
@given(rows=items)
@fast
def test_the_penalty_is_beta_times_the_sum_of_counted_terms(estimator: Estimator, rows: list[Item]) -> None:
    rewards = rewards_of(rows, Llama2(), estimator=estimator)
    batch, _ = batch_of(rows)
    if batch.logprobs is None or rewards.penalty is None:
        return
    ends = [*batch.logprobs.starts[1:].tolist(), len(batch.logprobs.policy)]
    for item, start, end, kl in zip(batch.logprobs.items, batch.logprobs.starts, ends, rewards.penalty.kl, strict=True):
        terms = rewards.penalty.terms[start:end][batch.logprobs.counted[start:end]]
        assert kl == pytest.approx(math.fsum(terms), rel=1e-12, abs=1e-9)
        assert rewards.reward[item] == rewards.combined.whitened[item] - 0.1 * kl


def test_an_item_without_logprobs_has_no_penalty() -> None:
    rows: list[Item] = [(1.0, 2.0, False, False, 0, None), (1.0, 4.0, False, False, 0, [(-1.0, -3.0, True)])]
    rewards = rewards_of(rows, Llama2(), whitens=False)
    assert rewards.reward.tolist() == pytest.approx([2.0, 4.0 - 0.1 * 2.0])


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
def test_scores_are_clipped_then_penalised_for_a_missing_eos(clip: tuple[float, float] | None) -> None:
    rows: list[Item] = [(5.0, 5.0, False, True, 0, None), (-5.0, -5.0, True, False, 0, None)]
    options: dict[str, Any] = {"score_clip": clip, "missing_eos_penalty": 0.5}
    shaped = rewards_of(rows, Llama2(), **options).combined.shaped
    limit = 5.0 if clip is None else 1.0
    assert shaped is not None
    assert shaped.tolist() == [limit - 0.5, -limit]
    each = rewards_of(rows, Worst(), **options).combined.by_model
    assert each is not None
    assert [each[model].shaped.tolist() for model in each] == [[limit - 0.5, -limit]] * 2
