"""The loss of rated groups, compared with its equation term by term."""

import math

import pytest
import torch

from app.rewards.margins import MARGINS, rating_margin
from app.training.rated.losses import Objective, Ratings, across_loss, probability_harmless

NAMES = ("safety", "helpfulness")


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_the_loss_is_the_margin_ranking_loss_over_pairs_and_the_cross_entropy() -> None:
    ratings = {"safety": [5, 1], "helpfulness": [4, 4]}
    scores = torch.tensor([[0.5, 9.0], [-1.0, 0.0]])
    ranking = softplus(-(0.5 - -1.0 - 1.0))
    entropy = (softplus(-0.5) + softplus(-1.0)) / 2
    assert Objective(NAMES, "small")(scores, [ratings]).item() == pytest.approx(ranking)
    assert Objective(NAMES, "large")(scores, [ratings]).item() == pytest.approx(softplus(-(0.5 - -1.0 - 3.0)))
    assert Objective(NAMES, "small", pointwise="safety")(scores, [ratings]).item() == pytest.approx(ranking + entropy)


def test_a_group_counts_once_whatever_its_number_of_pairs() -> None:
    first, second = {"safety": [5, 1]}, {"safety": [5, 1, 3]}
    scores = torch.tensor([[0.5], [-1.0], [2.0], [0.0], [1.0]])
    objective = Objective(("safety",), "small")
    alone = [objective(scores[:2], [first]).item(), objective(scores[2:], [second]).item()]
    assert objective(scores, [first, second]).item() == pytest.approx(sum(alone) / 2)
    margins = [(2.0, 0.0, 1.0), (2.0, 1.0, 1 / 3), (1.0, 0.0, 1 / 3)]
    assert alone[1] == pytest.approx(sum(softplus(-(better - worse - m)) for better, worse, m in margins) / 3)


def test_harmful_responses_are_ranked_below_the_harmless_ones_of_every_prompt() -> None:
    ratings = [5, 3, 1, None]
    scores = torch.tensor([0.5, 7.0, -1.0, -7.0])
    assert across_loss(scores, ratings).item() == pytest.approx(softplus(-(0.5 - -1.0 - 1.0)))
    assert across_loss(scores[:2], ratings[:2]).item() == 0  # nothing harmful
    batch = [{"safety": ratings[:2]}, {"safety": ratings[2:]}]
    own, across = (Objective(("safety",), "small", across=name)(scores[:, None], batch) for name in (None, "safety"))
    assert across - own == pytest.approx(softplus(-0.5))


def test_a_pair_counts_as_ranked_if_the_better_response_scores_strictly_higher() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    batch: list[Ratings] = [{"safety": [5, 1, 4], "helpfulness": [None, 1, 2]}]
    assert Objective(NAMES).count_ranked(scores, batch) == (2, 4)  # not 5 over 4, not the tie in helpfulness


def test_a_batch_without_a_term_has_a_loss_of_0_and_no_gradient() -> None:
    scores = torch.zeros(2, 1, requires_grad=True)
    loss = Objective(("safety",), across="safety")(scores, [{"safety": [4, 4]}])
    assert (loss.item(), loss.requires_grad) == (0, False)


@pytest.mark.parametrize(("difference", "margin"), [(1, 0), (2, 1 / 3), (3, 2 / 3), (4, 1), (0.4, 0), (2.5, 0.5)])
def test_margins_of_differences_are_llama_2s(difference: float, margin: float) -> None:
    assert rating_margin(difference, "small") == pytest.approx(margin)
    assert rating_margin(difference, "large") == pytest.approx(3 * margin)


@pytest.mark.parametrize("scheme", ["small", "large"])
def test_the_four_differences_have_the_margins_of_the_four_ratings(scheme: str) -> None:
    table = MARGINS[scheme]  # type: ignore[index]
    found = [rating_margin(difference, scheme) for difference in (4, 3, 2, 1)]  # type: ignore[arg-type]
    assert found == pytest.approx(list(table.values()))


def test_ratings_up_to_two_are_harmful_and_from_four_harmless() -> None:
    assert [probability_harmless(rating) for rating in (1, 2, 3, 4, 5)] == [0, 0, 0.5, 1, 1]
