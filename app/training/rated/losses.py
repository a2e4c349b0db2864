"""The loss of a batch of rated groups, and how many of its pairs are ranked right.

Scores are a tensor (responses, ratings): the responses of the batch, group by group, and a column per rating's name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from app.rewards.margins import MarginScheme, rating_margin

Ratings = Mapping[str, Sequence[float | None]]
"""By name, the rating of each response of a group: 1 (worst) to 5, fractions too; None where nobody rated."""
HARMFUL, HARMLESS = 2.0, 4.0
"""A response is harmful up to the first rating, harmless from the second on."""
ACROSS_MARGIN = 1.0
"""Score units by which every harmless response should lead every harmful one: the largest of the small margins."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised: L = mean over the batch's groups of (R + P) + V.

    R, the margin ranking loss, is the sum over the ratings of the mean, over the pairs of the group's responses whose ratings
    differ, of -log sigmoid(r_better - r_worse - m(d)), where d is the difference of the two ratings and m(d) its margin
    (`app.rewards.margins.rating_margin`); Touvron et al. 2023, arXiv 2307.09288, section 3.2.2, equation 2.

    P is there with `pointwise`: the mean, over the group's responses that have this rating, of the cross-entropy of
    sigmoid(score) with the probability of being harmless that the rating stands for (`probability_harmless`).

    V is there with `across`: the mean, over every harmful and every harmless response of the batch by this rating,
    whatever their prompts, of -log sigmoid(r_harmless - r_harmful - 1). One threshold on the score can then judge them all.
    """

    names: tuple[str, ...]
    """Of the ratings, in the order of the scores' columns."""
    scheme: MarginScheme = "large"
    pointwise: str | None = None
    across: str | None = None

    def __call__(self, scores: Tensor, batch: Sequence[Ratings]) -> Tensor:
        """The loss in nats, a scalar. It has no gradient where the batch has no term."""
        total = scores.new_zeros(())
        for ratings, own in zip(batch, torch.split(scores, sizes_of(batch)), strict=True):
            for column, name in enumerate(self.names):
                total = total + ranking_loss(own, column, ratings[name], self.scheme)
            if self.pointwise is not None:
                total = total + pointwise_loss(own, self.names.index(self.pointwise), ratings[self.pointwise])
        total = total / len(batch)
        if self.across is not None:
            ratings_of_all = [rating for ratings in batch for rating in ratings[self.across]]
            total = total + across_loss(scores[:, self.names.index(self.across)], ratings_of_all)
        return total

    def count_ranked(self, scores: Tensor, batch: Sequence[Ratings]) -> tuple[int, int]:
        """(pairs whose better response has the strictly higher score, pairs), over all groups and ratings."""
        hits: list[bool] = []
        for ratings, own in zip(batch, torch.split(scores.detach().cpu(), sizes_of(batch)), strict=True):
            for column, name in enumerate(self.names):
                values = own[:, column].tolist()
                hits += [values[better] > values[worse] for better, worse, _ in pairs_of(ratings[name])]
        return sum(hits), len(hits)


def sizes_of(batch: Sequence[Ratings]) -> list[int]:
    """The number of responses of each group."""
    return [len(next(iter(ratings.values()))) for ratings in batch]


def pairs_of(ratings: Sequence[float | None]) -> Iterator[tuple[int, int, float]]:
    """(better, worse, difference) for every two responses of a group whose ratings differ."""
    for better, high in enumerate(ratings):
        for worse, low in enumerate(ratings):
            if high is not None and low is not None and high > low:
                yield better, worse, high - low


def ranking_loss(scores: Tensor, column: int, ratings: Sequence[float | None], scheme: MarginScheme) -> Tensor:
    """R of one group and the rating of that column; scores (responses, ratings). 0 where no two ratings differ."""
    pairs = list(pairs_of(ratings))
    if not pairs:
        return scores.new_zeros(())
    better, worse, differences = map(list, zip(*pairs, strict=True))
    margins = scores.new_tensor([rating_margin(difference, scheme) for difference in differences])
    return -functional.logsigmoid(scores[better, column] - scores[worse, column] - margins).mean()


def pointwise_loss(scores: Tensor, column: int, ratings: Sequence[float | None]) -> Tensor:
    """P of one group and the rating of that column; scores (responses, ratings). 0 where no response is rated."""
    rated = {i: probability_harmless(rating) for i, rating in enumerate(ratings) if rating is not None}
    if not rated:
        return scores.new_zeros(())
    targets = scores.new_tensor(list(rated.values()))
    return functional.binary_cross_entropy_with_logits(scores[list(rated), column], targets)


def across_loss(scores: Tensor, ratings: Sequence[float | None]) -> Tensor:
    """V of a batch; scores (responses,). 0 where none is harmful, or none harmless."""
    harmful = [i for i, rating in enumerate(ratings) if rating is not None and rating <= HARMFUL]
    harmless = [i for i, rating in enumerate(ratings) if rating is not None and rating >= HARMLESS]
    if not harmful or not harmless:
        return scores.new_zeros(())
    differences = scores[harmless][:, None] - scores[harmful][None, :]
    return -functional.logsigmoid(differences - ACROSS_MARGIN).mean()


def probability_harmless(rating: float) -> float:
    """The target of P: 0 up to a rating of 2, 1 from 4 on, linear between."""
    return min(1.0, max(0.0, (rating - HARMFUL) / (HARMLESS - HARMFUL)))
