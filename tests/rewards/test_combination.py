"""The rules that make one score of two, against their equations in exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.rewards.combination import Combination, Llama2, Weighted, Worst, lagrangian
from app.rewards.pipeline import Batch, Combined, RewardOptions, combine
from app.rewards.types import Floats
from app.rewards.whitening import WhitenStats, whiten

scores = st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=20)
weights = st.floats(0, 10)
fast = settings(max_examples=50, deadline=None)


def combined(pairs: list[tuple[float, float]], rule: Combination, *, whitens: bool = False) -> Combined:
    columns = arrays(pairs)
    none = np.zeros(len(pairs), np.bool_)
    batch = Batch(is_safety=none, unended=none, groups=np.zeros(len(pairs), np.intp), logprobs=None)
    return combine(batch, columns, RewardOptions(beta=0.0, combination=rule, whitens=whitens), None)


def arrays(pairs: list[tuple[float, float]]) -> dict[str, Floats]:
    safety, helpfulness = np.array(pairs, np.float64).T
    return {"safety": safety, "helpfulness": helpfulness}


def test_a_threshold_on_the_score_is_compared_with_the_raw_score() -> None:
    rule = Llama2(0.15, "score")
    result = combined([(-0.3, 0.7), (1.3, 0.4), (0.15, 0.4), (0.14, 0.4)], rule)
    assert result.selected is not None
    assert result.selected.tolist() == [-0.3, 0.4, 0.4, 0.14]
    as_probability = combined([(-0.3, 0.7), (-2.0, 0.7)], Llama2(0.15)).selected
    assert as_probability is not None
    assert as_probability.tolist() == [0.7, -2.0]


@given(scores, weights, weights)
@fast
def test_the_weighted_sum_is_its_equation(pairs: list[tuple[float, float]], safety: float, helpfulness: float) -> None:
    result = combined(pairs, Weighted({"safety": safety, "helpfulness": helpfulness}))
    exact = [Fraction(safety) * Fraction(s) + Fraction(helpfulness) * Fraction(h) for s, h in pairs]
    assert result.whitened.tolist() == pytest.approx([float(value) for value in exact], rel=1e-12, abs=1e-12)
    assert result.choice is None
    assert result.parts is not None
    assert (result.parts["safety"] + result.parts["helpfulness"]).tolist() == result.whitened.tolist()


@given(scores, st.floats(0, 1e9))
@fast
def test_the_lagrangian_is_its_equation(pairs: list[tuple[float, float]], multiplier: float) -> None:
    result = combined(pairs, lagrangian(multiplier))
    costs = [-Fraction(s) for s, _ in pairs]
    exact = [
        (Fraction(h) - Fraction(multiplier) * cost) / (1 + Fraction(multiplier))
        for (_, h), cost in zip(pairs, costs, strict=True)
    ]
    assert result.whitened.tolist() == pytest.approx([float(value) for value in exact], rel=1e-12, abs=1e-12)


@given(scores, weights, weights)
@fast
def test_whitened_sums_are_of_each_models_whitened_scores(
    pairs: list[tuple[float, float]], safety: float, helpfulness: float
) -> None:
    result = combined(pairs, Weighted({"safety": safety, "helpfulness": helpfulness}, whiten_each=True), whitens=True)
    white = {name: whiten(column, WhitenStats.of(column)) for name, column in arrays(pairs).items()}
    assert result.whitened.tolist() == (safety * white["safety"] + helpfulness * white["helpfulness"]).tolist()
    assert result.shaped is None


@given(scores)
@fast
def test_the_worst_is_the_lower_whitened_score(pairs: list[tuple[float, float]]) -> None:
    result = combined(pairs, Worst(), whitens=True)
    columns = arrays(pairs)
    white = {name: whiten(column, WhitenStats.of(column)) for name, column in columns.items()}
    assert result.whitened.tolist() == np.minimum(white["safety"], white["helpfulness"]).tolist()
    assert result.choice is not None
    assert result.selected is not None
    chosen = np.where(result.choice == 0, columns["safety"], columns["helpfulness"])
    assert result.selected.tolist() == chosen.tolist()


def test_a_tie_for_the_worst_goes_to_safety() -> None:
    result = combined([(1.0, 2.0), (2.0, 4.0)], Worst())
    assert result.choice is not None
    assert result.choice.tolist() == [0, 0]
    tied = combined([(1.0, 1.0), (2.0, 2.0)], Worst(), whitens=True)
    assert tied.choice is not None
    assert tied.choice.tolist() == [0, 0]


@pytest.mark.parametrize("multiplier", [0.0, 1.2, 1e300])
def test_lagrangian_weights_sum_to_one(multiplier: float) -> None:
    rule = lagrangian(multiplier)
    assert sum(rule.weights.values()) == pytest.approx(1.0, rel=1e-15)
