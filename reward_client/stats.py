"""Merges the whitening statistics of batches that were scored separately."""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING, Any, Union, overload

from reward_client.errors import BadReplyError
from reward_client.results import PPOResult, WhitenStats, is_number, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

AnyStats = Union[WhitenStats, "dict[str, WhitenStats]", "dict[str, dict[str, WhitenStats]]"]
NOTHING = WhitenStats(0, 0.0, 0.0)


@overload
def merge_stats(parts: Iterable[WhitenStats]) -> WhitenStats: ...
@overload
def merge_stats(parts: Iterable[Mapping[str, WhitenStats]]) -> dict[str, WhitenStats]: ...
@overload
def merge_stats(parts: Iterable[Mapping[str, Mapping[str, WhitenStats]]]) -> dict[str, dict[str, WhitenStats]]: ...
def merge_stats(parts: Iterable[Any]) -> Any:
    """The statistics of all the values together, in the form of the parts: one, a map by group or model, or a map of maps.

    Chan, Golub and LeVeque (1979): with d = mean_b - mean_a and n = n_a + n_b,
    mean = mean_a + d n_b / n and M2 = M2_a + M2_b + d^2 n_a n_b / n. No parts give a count of 0. A group that some parts lack is
    merged from the others; parts of different forms raise TypeError.
    """
    given = list(parts)
    if all(isinstance(part, WhitenStats) for part in given):
        return reduce(merge_two, given, NOTHING)
    if any(isinstance(part, WhitenStats) for part in given):
        raise TypeError("some of the statistics are of groups and some are not")
    keys = dict.fromkeys(key for part in given for key in part)
    return {key: merge_stats([part[key] for part in given if key in part]) for key in keys}


def read_stats(data: object) -> Any:
    """`whiten_stats` of a reply in whichever form; raises BadReplyError for anything else."""
    if isinstance(data, dict) and data and all(isinstance(each, dict) for each in data.values()):
        return {key: read_stats(each) for key, each in data.items()}
    return read(WhitenStats, data)


def stats_by_group(names: Sequence[str], results: Sequence[PPOResult]) -> AnyStats:
    """The statistics of each group's shaped scores, which may come from several requests; by model where `combine` whitens each."""
    if results and results[0].shaped_score is not None and not whitens_each(results[0]):
        return grouped(names, [result.shaped_score for result in results])
    models = (results[0].parts or {}) if results else {}
    return {
        model: grouped(names, [(result.parts or {}).get(model, {}).get("shaped_score") for result in results])
        for model in models
    }


def whitens_each(result: PPOResult) -> bool:
    return result.parts is not None and all("shaped_score" in part for part in result.parts.values())


def grouped(names: Sequence[str], scores: Sequence[float | None]) -> dict[str, WhitenStats]:
    groups: dict[str, list[float]] = {}
    for name, score in zip(names, scores, strict=True):
        if score is None or not is_number(score):
            raise BadReplyError(f"a result of group {name!r:.80} has {score!r:.80} for its shaped_score, not a number")
        groups.setdefault(name, []).append(score)
    return {name: stats_of(values) for name, values in groups.items()}


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
