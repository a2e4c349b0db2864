"""The KL estimators against their equations."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import kl_div

from app.rewards.kl import Estimator, kl_terms
from app.rewards.types import Floats

logprobs = st.floats(-40, 0)
fast = settings(max_examples=50, deadline=None)


def fp64(*values: float) -> Floats:
    return np.array(values, np.float64)


def by_equation(x: float, reference: float) -> dict[Estimator, float]:
    """Each estimator at x = log pi - log pi_0."""
    k3 = math.exp(-x) - 1 + x
    return {
        "k1": x,
        "k2": x * x / 2,
        "k3": k3,
        "abs": abs(x),
        "mse": x * x / 2,
        "low_var_kl": min(k3, 10.0),
        "pointwise": -math.exp(reference) * x,
    }


@given(logprobs, logprobs)
@fast
def test_every_estimator_agrees_with_its_equation(policy: float, reference: float) -> None:
    expected = by_equation(policy - reference, reference)
    assert set(expected) == set(get_args(Estimator))
    for estimator in get_args(Estimator):
        term = kl_terms(fp64(policy), fp64(reference), estimator).item()
        assert term == pytest.approx(expected[estimator], rel=1e-9, abs=1e-9)
        assert estimator in {"k1", "pointwise"} or term >= 0


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_only_the_difference_counts_but_for_pointwise(estimator: Estimator) -> None:
    policy, reference = fp64(-1.0, -0.25, -3.0), fp64(-1.5, -0.5, -2.0)
    shifted = kl_terms(policy - 4, reference - 4, estimator)
    expected = kl_terms(policy, reference, estimator) * (math.exp(-4) if estimator == "pointwise" else 1.0)
    assert shifted.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


@given(st.lists(st.tuples(logprobs, logprobs), min_size=1, max_size=20))
@fast
def test_pointwise_is_torchs_kl_div(pairs: list[tuple[float, float]]) -> None:
    policy, reference = (np.array(column) for column in zip(*pairs, strict=True))
    input_, target = torch.from_numpy(policy), torch.from_numpy(reference)
    for expected in (
        kl_div(input_, target.exp(), reduction="none"),
        kl_div(input_, target, reduction="none", log_target=True),
    ):
        assert kl_terms(policy, reference, "pointwise").tolist() == pytest.approx(
            expected.tolist(), rel=1e-9, abs=1e-15
        )


def test_low_var_kl_does_not_overflow_where_k3_does() -> None:
    assert kl_terms(fp64(-900.0), fp64(-1.0), "k3").item() == math.inf
    assert kl_terms(fp64(-900.0), fp64(-1.0), "low_var_kl").item() == 10.0


@given(st.floats(-1e-4, 1e-4))
@fast
def test_k3_keeps_its_precision_for_policies_that_hardly_differ(x: float) -> None:
    series = x**2 / 2 - x**3 / 6 + x**4 / 24
    assert kl_terms(fp64(x), fp64(0.0), "k3").item() == pytest.approx(series, abs=1e-19)


@pytest.mark.parametrize("x", [-5.0, -0.5, 0.5, 5.0])
def test_the_clip_acts_on_the_log_ratio_before_the_estimator(x: float) -> None:
    clipped = max(-1.0, min(1.0, x))
    expected = by_equation(clipped, 0.0)
    for estimator in get_args(Estimator):
        assert kl_terms(fp64(x), fp64(0.0), estimator, clip=1.0).item() == pytest.approx(expected[estimator])


def test_k1_and_k3_estimate_the_divergence_of_two_distributions() -> None:
    policy, reference = fp64(0.5, 0.3, 0.2), fp64(0.2, 0.5, 0.3)
    divergence = (policy * np.log(policy / reference)).sum().item()
    for estimator in ("k1", "k3"):
        mean = (policy * kl_terms(np.log(policy), np.log(reference), estimator)).sum().item()
        assert mean == pytest.approx(divergence, abs=1e-12)
