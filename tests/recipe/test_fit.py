"""The loss that both models are trained with, and what of the data is trained on when."""

import math
import random

import pytest
import torch

from models.recipe.export import constant_direction
from models.recipe.fit import Options, loss_of, margin_of, rate_at, shuffled_batches, target_of, veto_loss
from models.recipe.packed import Group, Response, Row

TURNS = (("user", "?"),)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_the_loss_is_the_margin_ranking_loss_over_pairs_and_the_cross_entropy_of_safety() -> None:
    group = Group("a", TURNS, (Response("x", safety=5, helpfulness=4), Response("y", safety=1, helpfulness=4)))
    scores = torch.tensor([[0.5, 9.0], [-1.0, 0.0]])
    ranking = softplus(-(0.5 - -1.0 - 1.0))
    entropy = (softplus(-0.5) + softplus(-1.0)) / 2
    assert loss_of(scores, [group], Options(pointwise=2, veto=0)).item() == pytest.approx(ranking + 2 * entropy)
    assert loss_of(scores, [group], Options(weights=(0, 1), pointwise=0, veto=0)).item() == 0  # equally helpful


def test_harmful_responses_are_ranked_below_the_harmless_ones_of_every_prompt() -> None:
    first = Group("a", TURNS, (Response("x", safety=5), Response("y", safety=3)))
    second = Group("a", TURNS, (Response("z", safety=1), Response("unrated")))
    scores = torch.tensor([0.5, 7.0, -1.0, -7.0])
    assert veto_loss(scores, [first, second]).item() == pytest.approx(softplus(-(0.5 - -1.0 - 1.0)))
    assert veto_loss(scores[:2], [first]).item() == 0  # nothing harmful
    both = torch.stack([scores, torch.zeros(4)], 1)
    without = loss_of(both, [first, second], Options(veto=0))
    assert loss_of(both, [first, second], Options(veto=2)) - without == pytest.approx(2 * softplus(-0.5))


@pytest.mark.parametrize(("difference", "margin"), [(1, 0), (2, 1 / 3), (3, 2 / 3), (4, 1), (0.4, 0)])
def test_margins_are_llama_2s_small_ones(difference: float, margin: float) -> None:
    assert margin_of(difference) == pytest.approx(margin)


def test_ratings_up_to_two_are_harmful_and_from_four_harmless() -> None:
    assert [target_of(rating) for rating in (1, 2, 3, 4, 5)] == [0, 0, 0.5, 1, 1]


def test_an_epoch_has_every_prompt_once_in_another_order_each_time() -> None:
    rows = [Row(torch.zeros(900), torch.zeros(900), torch.zeros(900), []) for _ in range(9)]
    rng = random.Random(0)  # noqa: S311 - to be reproducible, not secret
    first, second = (shuffled_batches(rows, rng) for _ in range(2))
    assert sorted(index for batch in first for index in batch) == list(range(9))
    assert first != second


def test_the_rate_warms_up_and_ends_at_a_tenth() -> None:
    rates = [rate_at(step, 100) for step in range(101)]
    assert max(rates) == 1
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.1)


def test_a_constant_is_found_in_states_that_have_one() -> None:
    torch.manual_seed(0)
    states = torch.randn(200, 8)
    states[:, 3] = 2.0
    direction = constant_direction(states)
    assert direction.shape == (1, 8)
    assert (states @ direction.T - 1).abs().max() < 0.05
