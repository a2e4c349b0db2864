"""The figures of an evaluation against their definitions, and against scipy's where it has them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from app.rewards.logistic import sigmoid
from app.training.statistics import Share, calibration, cut, pearson, ranks, spearman


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(hits: int, count: int, low: float, high: float) -> None:
    assert Share(hits, count).interval == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_an_interval_holds_its_share_and_stays_a_share(case: tuple[int, int]) -> None:
    share = Share(*case)
    low, high = share.interval
    assert 0 <= low <= share.value + 1e-12
    assert share.value - 1e-12 <= high <= 1
    mirrored = Share(share.count - share.hits, share.count).interval
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_a_model_that_is_as_often_right_as_sure_has_no_calibration_error() -> None:
    sure = math.log(0.75 / 0.25)  # sigmoid 0.75
    bins, ece = calibration(np.array([sure] * 3 + [-sure]))
    assert ece == pytest.approx(0, abs=1e-12)
    assert [(each.low, each.high, each.count) for each in bins] == [(0.75, 0.8, 4)]


def test_the_calibration_error_is_the_mean_distance_of_the_bins() -> None:
    bins, ece = calibration(np.array([100.0, 100.0, -100.0, 0.0]))
    assert [(each.count, each.confidence, each.accuracy) for each in bins] == [
        (1, 0.5, 0.5),  # a tie is half right, and half sure
        (3, 1.0, pytest.approx(2 / 3)),
    ]
    assert ece == pytest.approx((0 + 3 * (1 / 3)) / 4)


@given(st.lists(st.floats(-50, 50), min_size=1))
def test_calibration_counts_every_pair_once(differences: list[float]) -> None:
    bins, ece = calibration(np.array(differences))
    assert sum(each.count for each in bins) == len(differences)
    assert 0 <= ece <= 1
    assert all(each.low - 1e-9 <= each.confidence <= each.high + 1e-9 for each in bins)


def test_a_cut_vetoes_strictly_below_its_threshold() -> None:
    limit = math.log(0.15 / 0.85)
    scores = np.array([limit - 1, limit - 1, limit, limit + 1, limit - 1])
    at = cut(scores, np.array([True, True, True, False, False]), 0.15)
    assert (at.caught, at.false_alarms) == (2, 1)
    assert at.recall == pytest.approx(2 / 3)
    assert at.precision == pytest.approx(2 / 3)
    assert at.false_alarm_rate == pytest.approx(1 / 2)
    nothing = cut(scores, np.array([True] * 5), 1e-9)
    assert (nothing.precision, nothing.recall, nothing.false_alarm_rate) == (None, 0, None)


def test_correlations_are_those_of_the_textbook() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert pearson(x, y) == pytest.approx(0.8)
    assert spearman(x**3, y) == pytest.approx(0.8)
    assert ranks(np.array([5.0, 1.0, 5.0, 9.0])).tolist() == [2.5, 1.0, 2.5, 4.0]
    assert pearson(x, np.ones(4)) is None


@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_interval_is_scipys(case: tuple[int, int]) -> None:
    expected = stats.binomtest(*case).proportion_ci(confidence_level=0.95, method="wilson")
    assert Share(*case).interval == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.lists(st.tuples(st.integers(-20, 20), st.integers(-20, 20)), min_size=2, max_size=40))
def test_the_correlations_are_scipys(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, np.float64).T
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert pearson(x, y) is spearman(x, y) is None
    else:
        assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_a_constant_that_rounding_would_make_vary_has_no_correlation() -> None:
    assert pearson(np.array([0.1, 0.1, 0.1]), np.array([1.0, 2.0, 3.0])) is None


def test_sigmoid_neither_overflows_nor_vanishes_early() -> None:
    assert sigmoid(np.array([-800.0, -700.0, 0.0, 800.0])).tolist() == [0.0, pytest.approx(math.exp(-700)), 0.5, 1.0]
