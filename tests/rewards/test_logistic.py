"""The logistic function and its inverse against reference numbers and mpmath."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.rewards.logistic import log_sigmoid, logit, probability, sigmoid
from app.rewards.types import Floats

fast = settings(max_examples=50, deadline=None)


def fp64(*values: float) -> Floats:
    return np.array(values, np.float64)


@pytest.mark.parametrize(("p", "expected"), [(0.9, 2.1972), (0.5, 0.0), (0.01, -4.5951)])
def test_logit_gives_the_reference_numbers(p: float, expected: float) -> None:
    assert logit(p) == pytest.approx(expected, abs=5e-5)


@given(st.floats(-15, 15))
@fast
def test_logit_inverts_the_sigmoid(score: float) -> None:
    assert logit(sigmoid(fp64(score)).item()) == pytest.approx(score, abs=1e-8)


@given(st.floats(-745, 745))
@fast
def test_sigmoid_and_its_logarithm_are_right_to_the_last_digits(score: float) -> None:
    with mpmath.workdps(360):
        exact = 1 / (1 + mpmath.exp(-mpmath.mpf(score)))
        expected, log = float(exact), float(mpmath.log(exact))
    assert sigmoid(fp64(score)).item() == pytest.approx(expected, rel=1e-15, abs=5e-324)
    assert probability(score) == pytest.approx(expected, rel=1e-15, abs=5e-324)
    assert log_sigmoid(fp64(score)).item() == pytest.approx(log, rel=1e-14, abs=5e-324)
