"""The margin ranking loss by hand, and its gradient against autograd of the torch loss."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from app.rewards.margins import MARGINS, Rating
from app.rewards.ranking import margin_ranking_gradient, margin_ranking_loss
from app.rewards.types import Floats

scores = st.floats(-30, 30)
fast = settings(max_examples=50, deadline=None)


def fp64(*values: float) -> Floats:
    return np.array(values, np.float64)


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


def test_the_loss_of_scores_that_are_no_numbers_is_none_either() -> None:
    assert np.isnan(margin_ranking_loss(fp64(math.nan, math.inf), fp64(0.0, math.inf))).all()
    assert np.isnan(margin_ranking_gradient(fp64(math.nan), fp64(0.0))).all()
    assert margin_ranking_loss(fp64(math.inf, -math.inf), fp64(0.0, 0.0)).tolist() == [0.0, math.inf]


@given(scores, scores, st.floats(0, 5))
@fast
def test_the_gradient_is_autograds(chosen: float, rejected: float, margin: float) -> None:
    chosen_score = torch.from_numpy(fp64(chosen)).requires_grad_()
    rejected_score = torch.from_numpy(fp64(rejected)).requires_grad_()
    loss = -logsigmoid(chosen_score - rejected_score - margin).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert margin_ranking_loss(fp64(chosen), fp64(rejected), margin).item() == pytest.approx(loss.item(), rel=1e-12)
    gradient = margin_ranking_gradient(fp64(chosen), fp64(rejected), margin).item()
    assert chosen_score.grad is not None
    assert rejected_score.grad is not None
    assert gradient == pytest.approx(chosen_score.grad.item(), rel=1e-9, abs=1e-15)
    assert -gradient == pytest.approx(rejected_score.grad.item(), rel=1e-9, abs=1e-15)


def test_margins_are_those_of_the_paper() -> None:
    assert tuple(MARGINS["large"].values()) == (3, 2, 1, 0)
    assert tuple(MARGINS["small"].values()) == pytest.approx((1, 2 / 3, 1 / 3, 0))
    assert all(tuple(scheme) == get_args(Rating) for scheme in MARGINS.values())
