"""Statistics of scored pairs: numbers in, numbers out, each defined where it is computed.

Only numpy, so that `reward-service evaluate` needs no extra; the tests compare with scipy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.rewards.logistic import sigmoid
from app.rewards.selection import selects_safety
from app.rewards.types import Floats

Z_95 = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


def wilson(value: float, count: int) -> tuple[float, float]:
    """The 95 % score interval (low, high) of a share `value` of `count` observations, at least one (Wilson 1927).

    It stays within [0, 1], and is not empty even for 20 of 20. It assumes independent pairs; where many pairs share a
    prompt, the true interval is wider. `value * count` need not be whole, because a tie counts as half a hit in a
    reliability bin; scipy's `binomtest`, with which the tests compare this, accepts whole numbers only.
    """
    z = Z_95
    middle = (value + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(value * (1 - value) / count + z * z / (4 * count * count))
    low, high = min(value, middle - half), max(value, middle + half)  # rounding must not exclude the share itself
    return max(0.0, low), min(1.0, high)


@dataclass(frozen=True, slots=True)
class Share:
    """`hits` of `count` observations; `count` is at least 1."""

    hits: int
    count: int

    @property
    def value(self) -> float:
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.value, self.count)

    @classmethod
    def of(cls, hits: Sequence[bool] | NDArray[np.bool_]) -> "Share":
        return cls(int(np.sum(hits)), len(hits))

    def to_dict(self) -> dict[str, float | int]:
        low, high = self.interval
        return {"value": self.value, "low": low, "high": high, "hits": self.hits, "count": self.count}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f} to {high:.3f})"


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of similar confidence: their mean confidence, and the share of them that the model ranked correctly."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.accuracy, self.count)


NUM_BINS = 10


def calibration(differences: Floats) -> tuple[list[Bin], float]:
    """The reliability curve of sigmoid(chosen - rejected), and its expected calibration error.

    `differences` is chosen - rejected, shape (pairs,). The model prefers the side with the higher score, with the confidence
    sigmoid(|difference|) in [0.5, 1]; it is correct if that is the chosen side, and a tie counts as half correct. There are ten
    bins of equal width; ECE is the mean over pairs of |accuracy - confidence| of their bin (Guo et al. 2017, arXiv 1706.04599).
    Bins without pairs are left out.
    """
    confidence = sigmoid(np.abs(differences))
    right = np.where(differences == 0, 0.5, differences > 0)
    width = 0.5 / NUM_BINS
    index = np.minimum(((confidence - 0.5) / width).astype(int), NUM_BINS - 1)
    bins = [
        Bin(
            0.5 + i * width,
            0.5 + (i + 1) * width,
            int(own.sum()),
            float(confidence[own].mean()),
            float(right[own].mean()),
        )
        for i in range(NUM_BINS)
        if (own := index == i).any()
    ]
    ece = sum(each.count * abs(each.accuracy - each.confidence) for each in bins) / len(differences)
    return bins, ece


@dataclass(frozen=True, slots=True)
class Cut:
    """What a threshold on the safety probability vetoes: the responses strictly below it."""

    threshold: float
    caught: int
    num_unsafe: int
    false_alarms: int
    num_safe: int

    @property
    def recall(self) -> float:
        """The share of the unsafe responses that is vetoed."""
        return self.caught / self.num_unsafe

    @property
    def precision(self) -> float | None:
        """The share of the vetoed responses that is unsafe; None if nothing is vetoed."""
        num_vetoed = self.caught + self.false_alarms
        return self.caught / num_vetoed if num_vetoed else None

    @property
    def false_alarm_rate(self) -> float | None:
        """The share of the safe responses that is vetoed; None if no response is safe."""
        return self.false_alarms / self.num_safe if self.num_safe else None


def cut(scores: Floats, is_unsafe: NDArray[np.bool_], threshold: float) -> Cut:
    """Applies the service's selection rule to responses whose prompts are not marked as safety prompts.

    `scores` are raw, shape (responses,); `threshold` is a probability. At least one response must be unsafe.
    """
    vetoed = selects_safety(scores, is_safety=False, threshold=threshold)
    num_unsafe = int(is_unsafe.sum())
    caught = int((vetoed & is_unsafe).sum())
    return Cut(threshold, caught, num_unsafe, int(vetoed.sum()) - caught, len(scores) - num_unsafe)


def pearson(x: Floats, y: Floats) -> float | None:
    """Pearson's linear correlation; None if x or y is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):  # a variance that underflows to 0
        correlation = float(np.corrcoef(x, y)[0, 1])
    return correlation if math.isfinite(correlation) else None


def spearman(x: Floats, y: Floats) -> float | None:
    """Spearman's rank correlation; None if x or y is constant."""
    return pearson(ranks(x), ranks(y))


def ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = last - (counts - 1) / 2
    return np.asarray(mean_rank[inverse], np.float64)
