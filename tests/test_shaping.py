"""The reward arithmetic against the recipe's published numbers and against independent computations."""

import math
import statistics
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.shaping import (
    MARGINS,
    Estimator,
    Rating,
    WhitenStats,
    kl_terms,
    logit,
    margin_ranking_gradient,
    margin_ranking_loss,
    select,
    selects_safety,
    token_rewards,
    whiten,
)

scores = st.floats(-30, 30)
many_scores = st.lists(scores, min_size=2, max_size=40)
logprobs = st.floats(-40, 0)
fast = settings(max_examples=50, deadline=None)


def fp64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def whitened_by_hand(values: list[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)
    return [(x - mean) / math.sqrt(variance + 1e-8) for x in values]


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
    assert select(fp64(safety), fp64(helpfulness), torch.tensor([is_safety])).item() == expected


def test_the_threshold_is_strict() -> None:
    boundary = math.log(0.15 / 0.85)
    assert boundary == pytest.approx(-1.7346, abs=1e-4)
    below, at = math.nextafter(boundary, -math.inf), math.nextafter(boundary, math.inf)
    taken = selects_safety(fp64(below - 1e-15, at), torch.tensor([False, False]))
    assert taken.tolist() == [True, False]
    exactly = selects_safety(fp64(-5e-324, 0.0), torch.tensor([False, False]), threshold=0.5)
    assert exactly.tolist() == [True, False]


def test_selection_does_not_need_a_helpfulness_score_where_safety_is_selected() -> None:
    assert select(fp64(-3.0), fp64(math.nan), torch.tensor([False])).item() == -3.0


@given(scores, scores, st.floats(0.001, 0.999))
@fast
def test_selection_agrees_with_the_probability_threshold(safety: float, helpfulness: float, threshold: float) -> None:
    probability = 1 / (1 + math.exp(-safety))
    chosen = select(fp64(safety), fp64(helpfulness), torch.tensor([False]), threshold).item()
    if not math.isclose(probability, threshold, rel_tol=1e-9):
        assert chosen == (safety if probability < threshold else helpfulness)


@pytest.mark.parametrize("score", [-700.0, -40.0, 16.7, 40.0, 700.0])
def test_a_score_beyond_the_sigmoids_saturation_is_selected_as_it_is(score: float) -> None:
    assert select(fp64(score), fp64(score), torch.tensor([False])).item() == score


@pytest.mark.parametrize(("probability", "expected"), [(0.9, 2.1972), (0.5, 0.0), (0.01, -4.5951)])
def test_logit_gives_the_reference_numbers(probability: float, expected: float) -> None:
    assert logit(fp64(probability)).item() == pytest.approx(expected, abs=5e-5)


@given(st.floats(-15, 15))
@fast
def test_logit_inverts_the_sigmoid(score: float) -> None:
    assert logit(torch.sigmoid(fp64(score))).item() == pytest.approx(score, abs=1e-8)


REFERENCE = [0.83, 1.2, 3.3, 4.6]


def test_whitening_gives_the_reference_numbers() -> None:
    values = fp64(*REFERENCE)
    expected = (values - values.mean()) * torch.rsqrt(values.var(unbiased=True) + 1e-8)
    whitened = whiten(values, WhitenStats.of(values))
    assert whitened.tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert whitened.tolist() == pytest.approx(whitened_by_hand(REFERENCE), abs=1e-12)
    shifted = values + 100
    assert whiten(shifted, WhitenStats.of(shifted)).tolist() == pytest.approx(whitened.tolist(), abs=1e-12)


def test_whitening_can_keep_the_mean() -> None:
    values = fp64(*REFERENCE)
    stats = WhitenStats.of(values)
    kept = whiten(values, stats, shift_mean=False)
    assert kept.tolist() == pytest.approx([x + stats.mean for x in whitened_by_hand(REFERENCE)], abs=1e-12)
    assert kept.mean().item() == pytest.approx(stats.mean)


@given(many_scores, st.floats(-1000, 1000))
@fast
def test_whitening_does_not_see_a_shift(values: list[float], shift: float) -> None:
    plain, shifted = fp64(*values), fp64(*values) + shift
    before = whiten(plain, WhitenStats.of(plain))
    after = whiten(shifted, WhitenStats.of(shifted))
    # rounding of the shifted values is divided by a standard deviation of at least sqrt(1e-8)
    assert after.tolist() == pytest.approx(before.tolist(), abs=1e-7)


@given(many_scores)
@fast
def test_whitening_agrees_with_the_formula(values: list[float]) -> None:
    tensor = fp64(*values)
    assert whiten(tensor, WhitenStats.of(tensor)).tolist() == pytest.approx(whitened_by_hand(values), abs=1e-7)


@given(many_scores)
@fast
def test_statistics_are_those_of_the_standard_library(values: list[float]) -> None:
    stats = WhitenStats.of(fp64(*values))
    assert stats.count == len(values)
    assert stats.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
    assert stats.variance == pytest.approx(statistics.variance(values), abs=1e-9)


def merged(a: WhitenStats, b: WhitenStats) -> WhitenStats:
    """Chan et al. 1983, as a trainer merges what several requests returned."""
    count, delta = a.count + b.count, b.mean - a.mean
    return WhitenStats(count, a.mean + delta * b.count / count, a.m2 + b.m2 + delta**2 * a.count * b.count / count)


@given(many_scores, st.data())
@fast
def test_merged_statistics_of_two_parts_whiten_like_those_of_the_whole(
    values: list[float], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    whole = fp64(*values)
    merge = merged(WhitenStats.of(whole[:cut]), WhitenStats.of(whole[cut:]))
    stats = WhitenStats.of(whole)
    assert merge.count == stats.count
    assert merge.mean == pytest.approx(stats.mean, abs=1e-12)
    assert merge.m2 == pytest.approx(stats.m2, abs=1e-9)
    parts = torch.cat([whiten(whole[:cut], merge), whiten(whole[cut:], merge)])
    assert parts.tolist() == pytest.approx(whiten(whole, stats).tolist(), abs=1e-7)


def test_a_single_score_has_statistics() -> None:
    assert WhitenStats.of(fp64(1.5)) == WhitenStats(1, 1.5, 0.0)


def test_a_margin_of_three_lowers_the_argument_of_log_sigmoid_by_three() -> None:
    chosen, rejected = fp64(2.5, 0.1), fp64(-0.5, 0.4)
    loss = margin_ranking_loss(chosen, rejected, 3.0)
    by_hand = [math.log1p(math.exp(-(c - r - 3.0))) for c, r in ((2.5, -0.5), (0.1, 0.4))]
    assert loss.tolist() == pytest.approx(by_hand, abs=1e-12)
    assert loss.tolist() == pytest.approx(margin_ranking_loss(chosen - 3.0, rejected).tolist(), abs=1e-12)


@pytest.mark.parametrize(("difference", "expected"), [(-200.0, 200.0), (-1000.0, 1000.0), (0.0, math.log(2))])
def test_the_loss_of_a_hopeless_pair_is_its_difference(difference: float, expected: float) -> None:
    assert margin_ranking_loss(fp64(difference), fp64(0.0)).item() == pytest.approx(expected, abs=1e-12)


def test_the_loss_of_a_clear_pair_does_not_vanish() -> None:
    assert margin_ranking_loss(fp64(200.0), fp64(0.0)).item() == pytest.approx(math.exp(-200), rel=1e-12)


@given(scores, scores, st.floats(0, 5))
@fast
def test_the_gradient_is_autograds(chosen: float, rejected: float, margin: float) -> None:
    chosen_score = fp64(chosen).requires_grad_()
    rejected_score = fp64(rejected).requires_grad_()
    margin_ranking_loss(chosen_score, rejected_score, margin).sum().backward()  # type: ignore[no-untyped-call]
    gradient = margin_ranking_gradient(fp64(chosen), fp64(rejected), margin).item()
    assert chosen_score.grad is not None
    assert rejected_score.grad is not None
    assert gradient == pytest.approx(chosen_score.grad.item(), rel=1e-9, abs=1e-15)
    assert -gradient == pytest.approx(rejected_score.grad.item(), rel=1e-9, abs=1e-15)


def test_margins_are_those_of_the_paper() -> None:
    assert tuple(MARGINS["large"].values()) == (3, 2, 1, 0)
    assert tuple(MARGINS["small"].values()) == pytest.approx((1, 2 / 3, 1 / 3, 0))
    assert all(tuple(scheme) == get_args(Rating) for scheme in MARGINS.values())


@given(logprobs, logprobs)
@fast
def test_every_estimator_agrees_with_its_equation(policy: float, reference: float) -> None:
    x = policy - reference
    expected = {"k1": x, "k2": x * x / 2, "k3": math.exp(-x) - 1 + x}
    for estimator in get_args(Estimator):
        term = kl_terms(fp64(policy), fp64(reference), estimator).item()
        assert term == pytest.approx(expected[estimator], rel=1e-9, abs=1e-9)
        assert estimator == "k1" or term >= 0


@given(st.floats(-1e-4, 1e-4))
@fast
def test_k3_keeps_its_precision_for_policies_that_hardly_differ(x: float) -> None:
    series = x**2 / 2 - x**3 / 6 + x**4 / 24
    assert kl_terms(fp64(x), fp64(0.0), "k3").item() == pytest.approx(series, abs=1e-19)


@pytest.mark.parametrize("x", [-5.0, -0.5, 0.5, 5.0])
def test_the_clip_acts_on_the_log_ratio_before_the_estimator(x: float) -> None:
    clipped = max(-1.0, min(1.0, x))
    expected = {"k1": clipped, "k2": clipped**2 / 2, "k3": math.exp(-clipped) - 1 + clipped}
    for estimator in get_args(Estimator):
        assert kl_terms(fp64(x), fp64(0.0), estimator, clip=1.0).item() == pytest.approx(expected[estimator])


def test_k1_and_k3_estimate_the_divergence_of_two_distributions() -> None:
    policy, reference = fp64(0.5, 0.3, 0.2), fp64(0.2, 0.5, 0.3)
    divergence = (policy * (policy / reference).log()).sum().item()
    for estimator in ("k1", "k3"):
        mean = (policy * kl_terms(policy.log(), reference.log(), estimator)).sum().item()
        assert mean == pytest.approx(divergence, abs=1e-12)


def test_token_rewards_stand_at_counted_tokens_with_the_score_at_the_last() -> None:
    counted = torch.tensor([False, True, True, False])
    rewards = token_rewards(2.0, fp64(9.0, 0.5, -1.0, 9.0), counted, beta=0.1)
    assert rewards.tolist() == pytest.approx([0.0, -0.05, 2.1, 0.0])


@given(
    st.floats(-5, 5), st.lists(st.tuples(st.floats(-10, 10), st.booleans()), min_size=1, max_size=30), st.floats(0, 1)
)
@fast
def test_token_rewards_sum_to_the_reward(whitened: float, tokens: list[tuple[float, bool]], beta: float) -> None:
    tokens = [*tokens, (0.25, True)]
    kl, counted = fp64(*(term for term, _ in tokens)), torch.tensor([keep for _, keep in tokens])
    rewards = token_rewards(whitened, kl, counted, beta)
    reward = whitened - beta * math.fsum(term for term, keep in tokens if keep)
    assert rewards.shape == kl.shape
    assert rewards.sum().item() == pytest.approx(reward, abs=1e-9)
    assert not rewards[~counted].any()
