"""Whitening statistics of batches that were scored apart, added up exactly."""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING, overload

from reward_client.results import WhitenStats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NOTHING = WhitenStats(0, 0.0, 0.0)


@overload
def merge_stats(parts: Iterable[WhitenStats]) -> WhitenStats: ...
@overload
def merge_stats(parts: Iterable[Mapping[str, WhitenStats]]) -> dict[str, WhitenStats]: ...
def merge_stats(
    parts: Iterable[WhitenStats] | Iterable[Mapping[str, WhitenStats]],
) -> WhitenStats | dict[str, WhitenStats]:
    """The statistics of all the values together; of maps by group, a map by group.

    Chan, Golub and LeVeque (1979): with d = mean_b - mean_a and n = n_a + n_b,
    mean = mean_a + d n_b / n and M2 = M2_a + M2_b + d^2 n_a n_b / n. No parts give a count of 0.
    """
    given: list[WhitenStats | Mapping[str, WhitenStats]] = list(parts)
    plain = [part for part in given if isinstance(part, WhitenStats)]
    if len(plain) == len(given):
        return reduce(merge_two, plain, NOTHING)
    merged: dict[str, WhitenStats] = {}
    for part in given:
        if isinstance(part, WhitenStats):
            raise TypeError("some of the statistics are of groups and some are not")
        for group, stats in part.items():
            merged[group] = merge_two(merged.get(group, NOTHING), stats)
    return merged


def merge_two(a: WhitenStats, b: WhitenStats) -> WhitenStats:
    count = a.count + b.count
    if not a.count or not b.count:
        return a if a.count else b
    delta = b.mean - a.mean
    return WhitenStats(count, a.mean + delta * b.count / count, a.m2 + b.m2 + delta**2 * a.count * b.count / count)


def stats_of(values: list[float]) -> WhitenStats:
    """The statistics of at least one value."""
    mean = math.fsum(values) / len(values)
    return WhitenStats(len(values), mean, math.fsum((value - mean) ** 2 for value in values))
