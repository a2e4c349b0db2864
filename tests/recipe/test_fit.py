"""The loss that both models are trained with, and what of the data is trained on when."""

import math
import random

import pytest
import torch

from models.recipe.export import constant_direction
from models.recipe.fit import Options, loss_of, margin_of, of_epoch, rate_at, shuffled_batches, target_of
from models.recipe.packed import Group, Response, Row

TURNS = (("user", "?"),)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_the_loss_is_the_margin_ranking_loss_over_pairs_and_the_cross_entropy_of_safety() -> None:
    group = Group("a", TURNS, (Response("x", safety=5, helpfulness=4), Response("y", safety=1, helpfulness=4)))
    scores = torch.tensor([[0.5, 9.0], [-1.0, 0.0]])
    ranking = softplus(-(0.5 - -1.0 - 1.0))
    entropy = (softplus(-0.5) + softplus(-1.0)) / 2
    assert loss_of(scores, [group], Options(pointwise=2)).item() == pytest.approx(ranking + 2 * entropy)
    assert loss_of(scores, [group], Options(weights=(0, 1), pointwise=0)).item() == 0  # equally helpful


def test_an_order_without_absolute_ratings_gives_no_cross_entropy() -> None:
    group = Group("hh", TURNS, (Response("x", safety=5), Response("y", safety=3)), absolute=False)
    scores = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    assert loss_of(scores, [group], Options()).item() == pytest.approx(softplus(-(1.0 - 1 / 3)))


@pytest.mark.parametrize(("difference", "margin"), [(1, 0), (2, 1 / 3), (3, 2 / 3), (4, 1), (0.4, 0)])
def test_margins_are_llama_2s_small_ones(difference: float, margin: float) -> None:
    assert margin_of(difference) == pytest.approx(margin)


def test_ratings_up_to_two_are_harmful_and_from_four_harmless() -> None:
    assert [target_of(rating) for rating in (1, 2, 3, 4, 5)] == [0, 0, 0.5, 1, 1]


def test_prompts_of_others_come_once_and_ours_in_every_epoch() -> None:
    groups = [Group(kind, TURNS, ()) for kind in ("vague", "pyrit", "pyrit", "hh", "rude")]
    epochs = [of_epoch(groups, epoch, Options(epochs=2)) for epoch in (0, 1)]
    assert sorted([*epochs[0], *epochs[1]]) == [0, 0, 1, 2, 3, 4, 4]
    rows = [Row(torch.zeros(9), torch.zeros(9), torch.zeros(9), []) for _ in groups]
    batches = shuffled_batches(rows, epochs[0], random.Random(0))  # noqa: S311 - to be reproducible, not secret
    assert sorted(index for batch in batches for index in batch) == sorted(epochs[0])


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
