"""From the scores of steps to one score."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.head import Head, Position, ScoreMap
from app.engine.sequence import TokenSequence

STEPS = Head(position=Position("at", (5,), name="token 'step'"))
scores = st.lists(st.floats(-30, 30), min_size=1, max_size=8)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(scores)
def test_mean_and_product_of_steps_are_of_their_probabilities(steps: list[float]) -> None:
    probabilities = [sigmoid(s) for s in steps]
    assert sigmoid(STEPS.reduce(steps, "mean")) == pytest.approx(sum(probabilities) / len(steps), rel=1e-9)
    assert sigmoid(STEPS.reduce(steps, "product")) == pytest.approx(math.prod(probabilities), rel=1e-9)


@pytest.mark.parametrize("s", [40.0, 700.0, -40.0, -700.0])
def test_they_stay_exact_where_a_probability_rounds_to_0_or_1(s: float) -> None:
    """n equal steps: the mean's log-odds is s itself; the product's is about s - log n, or n s for a small probability."""
    assert STEPS.reduce([s, s, s], "mean") == pytest.approx(s, rel=1e-12)
    expected = s - math.log(3) if s > 0 else 3 * s
    assert STEPS.reduce([s, s, s], "product") == pytest.approx(expected, rel=1e-9)


def test_a_product_on_both_sides_of_its_two_forms_is_the_exact_one() -> None:
    """1 - prod (1 - q_i) with q = e^-s / (1 + e^-s), in rational arithmetic."""
    for s in (26.0, 27.0, 28.0, 29.0, 30.0):
        q = Fraction(math.exp(-s)) / (1 + Fraction(math.exp(-s)))
        product = (1 - q) ** 2
        exact = math.log(product) - math.log(1 - product)
        assert STEPS.reduce([s, s], "product") == pytest.approx(exact, rel=1e-9)


def test_of_scores_that_are_probabilities_and_of_other_positions_they_are_of_the_scores() -> None:
    probabilities = Head(position=Position("at", (5,)), map=ScoreMap(sigmoid=True), reduction="product")
    assert probabilities.reduce([0.5, 0.25]) == 0.125
    pooled = Head(position=Position("all"), reduction="mean")
    assert pooled.reduce([1.0, 4.0]) == 2.5


@pytest.mark.parametrize("reduction", ["mean", "product"])
def test_a_step_that_is_not_finite_shows(reduction: str) -> None:
    assert math.isnan(STEPS.reduce([1.0, math.inf], reduction))  # type: ignore[arg-type]  # one of the names


def test_a_sequence_that_lacks_the_token_is_named() -> None:
    assert STEPS.find_fault(TokenSequence.of([1, 2])) == "has no token 'step'"
    assert STEPS.find_fault(TokenSequence.of([1, 5])) is None
    assert Head(position=Position("index", indices=(3,))).find_fault(TokenSequence.of([1, 2])) is not None
    assert Head().find_fault(TokenSequence.of([1])) is None


def places(position: Position, ids: list[int], num_prompt_tokens: int = 0) -> list[int]:
    return [int(i) for i in position.of(TokenSequence.of(ids, num_prompt_tokens=num_prompt_tokens))]


def test_tokens_of_the_prompt_are_no_steps_of_a_response() -> None:
    position = Position("at", (5,), in_response=True)
    assert places(position, [5, 1, 5, 2, 5, 5], num_prompt_tokens=3) == [4, 5]
    assert places(Position("before", (5,), in_response=True), [5, 1, 5, 2, 5], num_prompt_tokens=4) == [3]
    assert Head(position=position).find_fault(TokenSequence.of([5, 1], num_prompt_tokens=1)) is not None
    assert places(position, [5, 1, 5]) == [0, 2], "where the response is not known, all count"


def test_only_tokens_that_stand_directly_after_others_count() -> None:
    position = Position("before", (5,), after=(8, 9))
    assert places(position, [5, 8, 9, 5, 9, 5, 8, 5, 8, 9, 5]) == [2, 9]
    assert Head(position=position).find_fault(TokenSequence.of([9, 5])) is not None
    assert Head(position=position).find_fault(TokenSequence.of([5])) is not None
    assert places(position, [1, *position.sample_ids]) == [2]
