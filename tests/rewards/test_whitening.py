"""Whitening against the recipe's numbers, the formula by hand and the standard library."""

import math
import random
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.rewards.types import Floats
from app.rewards.whitening import WhitenStats, whiten

scores = st.floats(-30, 30)
many_scores = st.lists(scores, min_size=2, max_size=40)
fast = settings(max_examples=50, deadline=None)


def fp64(*values: float) -> Floats:
    return np.array(values, np.float64)


def whitened_by_hand(values: list[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)
    return [(x - mean) / math.sqrt(variance + 1e-8) for x in values]


REFERENCE = [0.83, 1.2, 3.3, 4.6]


def test_whitening_gives_the_reference_numbers() -> None:
    values = fp64(*REFERENCE)
    expected = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-8)
    whitened = whiten(values, WhitenStats.of(values))
    assert whitened.tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert whitened.tolist() == pytest.approx(whitened_by_hand(REFERENCE), abs=1e-12)
    shifted = values + 100
    assert whiten(shifted, WhitenStats.of(shifted)).tolist() == pytest.approx(whitened.tolist(), abs=1e-12)


def test_whitening_can_keep_the_mean() -> None:
    values = fp64(*REFERENCE)
    stats = WhitenStats.of(values)
    kept = whiten(values, stats, shift_mean=False)
    assert kept.tolist() == pytest.approx([x + stats.mean[0] for x in whitened_by_hand(REFERENCE)], abs=1e-12)
    assert kept.mean().item() == pytest.approx(stats.mean[0])


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
    array = fp64(*values)
    assert whiten(array, WhitenStats.of(array)).tolist() == pytest.approx(whitened_by_hand(values), abs=1e-7)


@given(many_scores)
@fast
def test_statistics_are_those_of_the_standard_library(values: list[float]) -> None:
    stats = WhitenStats.of(fp64(*values))
    assert stats.count.tolist() == [len(values)]
    assert stats.mean.tolist() == pytest.approx([statistics.fmean(values)], abs=1e-12)
    assert stats.variance.tolist() == pytest.approx([statistics.variance(values)], abs=1e-9)


@given(many_scores, st.data())
@fast
def test_merged_statistics_of_two_parts_whiten_like_those_of_the_whole(
    values: list[float], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    whole = fp64(*values)
    merge = WhitenStats.of(whole[:cut]).merge(WhitenStats.of(whole[cut:]))
    stats = WhitenStats.of(whole)
    assert merge.count.tolist() == stats.count.tolist()
    assert merge.mean.tolist() == pytest.approx(stats.mean.tolist(), abs=1e-12)
    assert merge.m2.tolist() == pytest.approx(stats.m2.tolist(), abs=1e-9)
    parts = np.concatenate([whiten(whole[:cut], merge), whiten(whole[cut:], merge)])
    assert parts.tolist() == pytest.approx(whiten(whole, stats).tolist(), abs=1e-7)


def test_a_single_score_has_statistics() -> None:
    stats = WhitenStats.of(fp64(1.5))
    assert (stats.count.tolist(), stats.mean.tolist(), stats.m2.tolist()) == ([1], [1.5], [0.0])


def test_merging_with_no_scores_changes_nothing() -> None:
    stats = WhitenStats.of(fp64(*REFERENCE))
    nothing = WhitenStats(np.array([0]), fp64(0.0), fp64(0.0))
    for merge in (stats.merge(nothing), nothing.merge(stats)):
        assert merge.mean.tolist() == pytest.approx(stats.mean.tolist(), rel=1e-15)
        assert (merge.count.tolist(), merge.m2.tolist()) == (stats.count.tolist(), stats.m2.tolist())


@given(st.lists(st.tuples(scores, st.integers(0, 4)), min_size=1, max_size=40), st.randoms())
@fast
def test_each_group_is_whitened_as_if_it_were_alone(pairs: list[tuple[float, int]], source: random.Random) -> None:
    source.shuffle(pairs)
    used = {group: number for number, group in enumerate(dict.fromkeys(group for _, group in pairs))}
    values, groups = fp64(*(value for value, _ in pairs)), np.array([used[group] for _, group in pairs])
    stats = WhitenStats.of(values, groups)
    whitened = whiten(values, stats, groups, shift_mean=False)
    for group in used.values():
        own = values[groups == group]
        alone = WhitenStats.of(own)
        assert stats.count[group] == alone.count[0]
        assert (stats.mean[group], stats.m2[group]) == pytest.approx((alone.mean[0], alone.m2[0]), rel=1e-12, abs=1e-12)
        expected = whiten(own, alone, shift_mean=False)
        assert whitened[groups == group].tolist() == pytest.approx(expected.tolist(), abs=1e-7)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.permutations(range(30)))
@fast
def test_the_order_of_the_scores_does_not_matter(values: list[float], order: list[int]) -> None:
    array = fp64(*values)
    places = np.array([i for i in order if i < len(values)])
    whitened = whiten(array, WhitenStats.of(array))
    shuffled = whiten(array[places], WhitenStats.of(array[places]))
    assert shuffled.tolist() == pytest.approx(whitened[places].tolist(), rel=1e-9, abs=1e-5)


@given(st.floats(-1e12, 1e12), st.integers(1, 100))
@fast
def test_equal_scores_are_whitened_to_exactly_nothing(value: float, count: int) -> None:
    values = np.full(count, value)
    stats = WhitenStats.of(values)
    assert (stats.mean.tolist(), stats.m2.tolist()) == ([value], [0.0])
    assert not whiten(values, stats).any()


def test_statistics_keep_their_precision_far_from_zero() -> None:
    values = 1e9 + np.array(REFERENCE)
    exact = [Fraction(value) for value in values.tolist()]
    mean = sum(exact) / len(exact)
    stats = WhitenStats.of(values)
    assert stats.mean[0] == pytest.approx(float(mean), rel=1e-16)
    assert stats.m2[0] == pytest.approx(float(sum((value - mean) ** 2 for value in exact)), rel=1e-6)
