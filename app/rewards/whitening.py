"""Whitening of scores over a batch, or over each of its groups."""

from dataclasses import dataclass

import numpy as np

from app.rewards.types import Floats, Indices

WHITEN_EPS = 1e-8
MIN_COUNT = 2
"""Number of scores that an unbiased variance needs."""


@dataclass(frozen=True, slots=True)
class WhitenStats:
    """Statistics of one or more groups. They suffice to whiten scores and to merge them with those of other batches."""

    count: Indices  # (groups,)
    mean: Floats  # (groups,)
    m2: Floats  # (groups,) sums of squared deviations from the mean

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")
    def of(cls, values: Floats, groups: Indices | None = None) -> "WhitenStats":
        """The statistics of values of shape (items,). `groups` has each value's group, numbered from 0; by default all are in group 0.

        Every group number up to the largest must occur. The mean is corrected by the mean of the deviations, so that a
        group of equal values has exactly that mean and an m2 of 0.
        """
        if groups is None:
            groups = np.zeros(len(values), np.intp)
        count = np.bincount(groups)
        starts = np.cumsum(count) - count
        order = np.argsort(groups, kind="stable")
        values, groups = values[order], groups[order]
        mean = np.add.reduceat(values, starts) / count
        mean += np.add.reduceat(values - mean[groups], starts) / count
        return cls(count, mean, np.add.reduceat((values - mean[groups]) ** 2, starts))

    @property
    def variance(self) -> Floats:
        """The unbiased variance m2 / (count - 1), (groups,); NaN where the count is below 2."""
        return self.m2 / np.where(self.count < MIN_COUNT, np.nan, self.count - 1)

    @np.errstate(over="ignore", invalid="ignore")
    def merge(self, other: "WhitenStats") -> "WhitenStats":
        """The statistics of both batches together, group by group (Chan, Golub and LeVeque 1979); counts may be 0.

        With d = mean_b - mean_a and n = n_a + n_b: mean = mean_a + d n_b / n, M2 = M2_a + M2_b + d^2 n_a n_b / n.
        """
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        return WhitenStats(count, self.mean + delta * share, self.m2 + other.m2 + delta * delta * self.count * share)


@np.errstate(over="ignore", invalid="ignore")
def whiten(values: Floats, stats: WhitenStats, groups: Indices | None = None, *, shift_mean: bool = True) -> Floats:
    """(x - mean) * rsqrt(var + 1e-8), and `+ mean` again where `shift_mean` is False; (items,) in and out.

    `var` is unbiased, as in `masked_whiten` of TRL and verl. Each value is whitened with the statistics of its group, by default
    group 0. A group with a count below 2 has no variance: its values become 0 (then `+ mean`). Callers that do not want this
    must check the counts.
    """
    if groups is None:
        groups = np.zeros(len(values), np.intp)
    mean = stats.mean[groups]
    scale = np.where(stats.count < MIN_COUNT, 0.0, (stats.variance + WHITEN_EPS) ** -0.5)
    whitened: Floats = (values - mean) * scale[groups]
    return whitened if shift_mean else whitened + mean
