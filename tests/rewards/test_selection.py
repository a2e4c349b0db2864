"""Selection against the recipe's examples and against the threshold as a probability."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.rewards.selection import select, selects_safety
from app.rewards.types import Floats

scores = st.floats(-30, 30)
fast = settings(max_examples=50, deadline=None)


def fp64(*values: float) -> Floats:
    return np.array(values, np.float64)


@pytest.mark.parametrize(
    ("safety", "helpfulness", "is_safety", "expected"),
    [
        (-2.0, 0.7, False, -2.0),
        (-0.3, 0.7, False, 0.7),
        (1.3, 0.4, False, 0.4),
        (-2.0, 0.7, True, -2.0),
        (-0.3, 0.7, True, -0.3),
        (1.3, 0.4, True, 1.3),
    ],
)
def test_selection_takes_safety_below_the_threshold_or_for_safety_prompts(
    safety: float, helpfulness: float, is_safety: bool, expected: float
) -> None:
    assert select(fp64(safety), fp64(helpfulness), np.array([is_safety])).item() == expected


def test_the_threshold_is_strict() -> None:
    boundary = math.log(0.15 / 0.85)
    assert boundary == pytest.approx(-1.7346, abs=1e-4)
    below, at = math.nextafter(boundary, -math.inf), math.nextafter(boundary, math.inf)
    taken = selects_safety(fp64(below - 1e-15, at), np.array([False, False]))
    assert taken.tolist() == [True, False]
    exactly = selects_safety(fp64(-5e-324, 0.0), np.array([False, False]), threshold=0.5)
    assert exactly.tolist() == [True, False]


def test_selection_does_not_need_a_helpfulness_score_where_safety_is_selected() -> None:
    assert select(fp64(-3.0), fp64(math.nan), np.array([False])).item() == -3.0


@given(scores, scores, st.floats(0.001, 0.999))
@fast
def test_selection_agrees_with_the_probability_threshold(safety: float, helpfulness: float, threshold: float) -> None:
    probability = 1 / (1 + math.exp(-safety))
    chosen = select(fp64(safety), fp64(helpfulness), np.array([False]), threshold).item()
    if not math.isclose(probability, threshold, rel_tol=1e-9):
        assert chosen == (safety if probability < threshold else helpfulness)


@pytest.mark.parametrize("score", [-700.0, -40.0, 16.7, 40.0, 700.0])
def test_a_score_beyond_the_sigmoids_saturation_is_selected_as_it_is(score: float) -> None:
    assert select(fp64(score), fp64(score), np.array([False])).item() == score
