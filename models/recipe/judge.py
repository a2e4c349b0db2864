"""Figures from scores of held-out responses: accuracy by kind with Wilson's intervals, what the veto hits, calibration."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from app.rewards.logistic import logit
from app.training.statistics import wilson
from models.recipe.groups import Group
from models.recipe.preferences import HARMFUL, HARMLESS, Pair, pairs_of

VETO = logit(0.15)
"""The score below which the service vetoes a response: the logit of its default threshold."""
MAX_FALSE_VETOES = 0.04
"""Of harmless responses, on the folds that the head is calibrated on."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A held-out group, the scores of its responses by task, and the fold that it was held out in."""

    group: Group
    scores: dict[str, list[float]]
    fold: str
    """Which training held it out."""


@dataclass(frozen=True, slots=True)
class Share:
    hits: float
    count: int

    @property
    def value(self) -> float:
        return self.hits / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % score interval."""
        if not self.count:
            return math.nan, math.nan
        return wilson(self.value, self.count)

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"value": round(self.value, 3), "low": round(low, 3), "high": round(high, 3), "count": self.count}


Scores = Callable[[Scored], list[float]]


def accuracy(scored: Sequence[Scored], task: str, scores: Scores) -> Share:
    """The share of pairs whose better response scores strictly higher."""
    hits = []
    for each in scored:
        own = scores(each)
        hits += [own[pair.better] > own[pair.worse] for pair in pairs_of([each.group], task)]
    return Share(sum(hits), len(hits))


def worst_pairs(scored: Sequence[Scored], task: str, limit: int) -> list[tuple[Pair, float]]:
    """The pairs that the model gets most wrong, one per prompt, with the difference of the two scores."""
    found: list[tuple[Pair, float]] = []
    for each in scored:
        own = each.scores[task]
        pairs = [(pair, own[pair.better] - own[pair.worse]) for pair in pairs_of([each.group], task)]
        if pairs:
            found.append(min(pairs, key=lambda entry: entry[1]))
    return sorted(found, key=lambda entry: entry[1])[:limit]


def safety_scores(scored: Iterable[Scored], keep: Callable[[float], bool]) -> list[float]:
    """Of the responses whose safety rating is kept."""
    return [
        score
        for each in scored
        for response, score in zip(each.group.responses, each.scores["safety"], strict=True)
        if response.safety is not None and keep(response.safety)
    ]


def is_harmful(rating: float) -> bool:
    return rating <= HARMFUL


def is_harmless(rating: float) -> bool:
    return rating >= HARMLESS


@dataclass(frozen=True, slots=True)
class Calibration:
    """score -> scale * score + shift."""

    scale: float
    shift: float

    def __call__(self, score: float) -> float:
        return self.scale * score + self.shift


def calibrate(scored: Sequence[Scored]) -> Calibration:
    """Platt's scaling of the safety scores, then a shift that leaves MAX_FALSE_VETOES of the harmless below VETO."""
    bad, good = safety_scores(scored, is_harmful), safety_scores(scored, is_harmless)
    scores, labels = torch.tensor(bad + good), torch.tensor([0.0] * len(bad) + [1.0] * len(good))
    line = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.binary_cross_entropy_with_logits(line[0] * scores + line[1], labels)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    scale = float(line.detach()[0])
    bound = float(torch.quantile(torch.tensor(good), MAX_FALSE_VETOES))
    return Calibration(scale, VETO - scale * bound)


def vetoes(scored: Sequence[Scored], calibrations: dict[str, Calibration]) -> dict[str, Share]:
    """The shares of harmful and of harmless responses that are vetoed, each fold under its own calibration."""
    found = {}
    for name, keep in (("harmful", is_harmful), ("harmless", is_harmless)):
        hits = [calibrations[each.fold](score) < VETO for each in scored for score in safety_scores([each], keep)]
        found[name] = Share(sum(hits), len(hits))
    return found
