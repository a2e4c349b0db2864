"""What each method sends and how it reads the replies, without I/O.

A plan is a generator: it yields requests that may be sent concurrently, receives their replies in the same order, and
returns the result. The sync and the async client only carry requests, so each plan is written once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from reward_client.encoding import LOGPROBS, Chunk, Limits, as_list, body, check_items, chunk, encode_options
from reward_client.errors import BadReplyError, InvalidItemError
from reward_client.exchange import Call
from reward_client.results import (
    CompareSummary,
    Comparison,
    ModelComparison,
    ModelScore,
    PairResult,
    PPOResult,
    PPORewards,
    ScoreResult,
    Scores,
    read,
    read_results,
    read_usage,
)
from reward_client.session import session_of
from reward_client.stats import AnyStats, merge_stats, read_stats, stats_by_group

T = TypeVar("T")
Replies = list[Any]
Plan = Generator[list[Call], Replies, T]
Items = Iterable[Mapping[str, Any]]
INPUTS = ("prompt", "response", "messages", "text", "rendered", "input_ids")


def calls(
    path: str, name: str, items: Sequence[Mapping[str, Any]], chunks: list[Chunk], options: Mapping[str, Any]
) -> list[Call]:
    """One request per chunk of the items. Options that are None are left out, so the server's defaults apply."""
    given = {name: value for name, value in options.items() if value is not None}
    return [
        Call(
            path,
            body(name, part, given),
            first_item=part.first_item,
            session=session_of(items[part.first_item]) if part.num_items else None,
        )
        for part in chunks
    ]


def get(path: str) -> Plan[Mapping[str, Any]]:
    (reply,) = yield [Call(path, method="GET")]
    return as_object(reply, path)


def post(path: str, fields: Mapping[str, Any]) -> Plan[Any]:
    if not path.startswith("/") or not path.isprintable():
        raise InvalidItemError(f"path is {path!r:.200}; pass the part of the URL that follows the host, such as /score")
    (reply,) = yield [Call(path, encode_options(fields))]
    return reply


def as_object(reply: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(reply, dict):
        raise BadReplyError(f"{path} was answered with {reply!r:.80}, not with an object")
    return reply


def score(items: Items, limits: Limits, options: Mapping[str, Any]) -> Plan[Scores]:
    rows = check_items(items, "item")
    chunks = chunk(rows, limits)
    replies = yield calls("/score", "items", rows, chunks, options)
    results = []
    for part, reply in zip(chunks, replies, strict=True):
        for result in read_results(ScoreResult, as_object(reply, "/score"), part.num_items):
            if not isinstance(result.scores, dict) or not result.scores:
                raise BadReplyError(f"scores are {result.scores!r:.80}, not a map by model")
            results.append(ScoreResult({name: read(ModelScore, entry) for name, entry in result.scores.items()}))
    return Scores(results, read_usage(replies))


def compare(pairs: Items, limits: Limits, options: Mapping[str, Any]) -> Plan[Comparison]:
    rows = check_items(pairs, "pair")
    chunks = chunk(rows, limits, "pairs")
    replies = yield calls("/compare", "pairs", rows, chunks, options)
    objects = [as_object(reply, "/compare") for reply in replies]
    own = model_comparison(rows, chunks, objects)
    by_model = None
    if options.get("models") is not None:
        by_model = {
            str(name): model_comparison(rows, chunks, [of_model(reply, str(name)) for reply in objects])
            for name in options["models"]
        }
    return Comparison(own.results, own.summary, read_usage(replies), by_model)


def of_model(reply: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One model's part of a response of /compare."""
    part = (reply.get("by_model") or {}).get(name)
    if not isinstance(part, dict):
        raise BadReplyError(f"/compare was answered with {part!r:.80} for the {name} model, not with an object")
    return part


def model_comparison(
    pairs: Sequence[Mapping[str, Any]], chunks: list[Chunk], replies: Sequence[Mapping[str, Any]]
) -> ModelComparison:
    results = [
        result
        for part, reply in zip(chunks, replies, strict=True)
        for result in read_results(PairResult, reply, part.num_items)
    ]
    return ModelComparison(results, summarize(pairs, results))


def summarize(pairs: Sequence[Mapping[str, Any]], results: list[PairResult]) -> CompareSummary:
    """The summary that the server computes, here over all the requests."""
    by_rating: dict[str, list[bool]] = {}
    for pair, result in zip(pairs, results, strict=True):
        if pair.get("rating") is not None:
            by_rating.setdefault(str(pair["rating"]), []).append(result.correct)
    return CompareSummary(
        loss=mean([result.loss for result in results]),
        loss_with_margin=mean([result.loss_with_margin for result in results]),
        accuracy=mean([result.correct for result in results]),
        accuracy_by_rating={rating: mean(correct) for rating, correct in by_rating.items()},
        count=len(results),
    )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def ppo_reward(
    items: Items,
    limits: Limits,
    options: Mapping[str, Any],
    columns: Mapping[str, Any],
) -> Plan[PPORewards]:
    """One request if the items fit into one. Otherwise, to whiten over all of them, everything is first scored in mode none and
    without logprobs; then the statistics are merged, and the scores are sent again with the merged statistics.
    """
    rows = with_columns(check_items(items, "item"), columns)
    whiten = dict(options.get("whiten") or {})
    mode = whiten.get("mode", "batch")
    chunks = chunk(rows, limits)
    if len(chunks) == 1 or mode == "none" or whiten.get("stats") is not None:
        replies = yield calls("/ppo-reward", "items", rows, chunks, options)
        return rewards_of(ppo_results(chunks, replies), replies, replies)
    names = group_names(rows) if mode == "group" else None
    process = options.get("process") or {}
    left_out = set() if process.get("model") is not None else {*LOGPROBS, "mask", "process_rewards", "step_ends"}
    bare = [{key: value for key, value in row.items() if key not in left_out} for row in rows]
    apart = {**options, "whiten": {"mode": "none"}, "token_rewards": False}
    if left_out:
        apart["process"] = None
    chunks = chunk(bare, limits)
    scored = yield calls("/ppo-reward", "items", bare, chunks, apart)
    first = ppo_results(chunks, scored)
    known = [scored_row(row, result) for row, result in zip(rows, first, strict=True)]
    chunks = chunk(known, limits)
    together = {**options, "whiten": {**whiten, "stats": merged(names, first, scored)}}
    if process:  # the items now contain the model's step scores
        together["process"] = {"weight": process.get("weight", 1.0)}
    replies = yield calls("/ppo-reward", "items", known, chunks, together)
    second = ppo_results(chunks, replies)
    results = [replace(b, truncated=a.truncated) for a, b in zip(first, second, strict=True)]
    return rewards_of(results, replies, scored)


def with_columns(items: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each item with its row of the batch's logprobs and mask, which are (items, tokens); raises InvalidItemError."""
    rows = [dict(item) for item in items]
    for name, column in columns.items():
        if column is not None:
            try:
                values = as_list(column)
            except TypeError as error:
                raise InvalidItemError(f"{name} is {column!r:.80}; pass one row of numbers per item") from error
            if len(values) != len(rows):
                raise InvalidItemError(f"{name} has {len(values)} rows and there are {len(rows)} items")
            for row, value in zip(rows, values, strict=True):
                row[name] = value
    return rows


def scored_row(row: Mapping[str, Any], result: PPOResult) -> dict[str, Any]:
    """The item with its scores, and its steps' scores, instead of its input."""
    kept = {key: value for key, value in row.items() if key not in INPUTS}
    if result.process_rewards is not None:
        kept |= {"process_rewards": result.process_rewards, "step_ends": result.step_ends}
    scores = {"safety_score": result.safety_score, "helpfulness_score": result.helpfulness_score}
    known: dict[str, Any] = {name: score for name, score in scores.items() if score is not None}
    return kept | known | ({"scores": result.scores} if result.scores else {})


def merged(names: list[str] | None, results: Sequence[PPOResult], replies: Replies) -> AnyStats:
    """The statistics of the whole batch, or of each named group; a group may be spread over several requests."""
    if names is not None:
        return stats_by_group(names, results)
    return whiten_stats(replies)


def group_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each item's group as a key of whiten_stats, which is a string; raises InvalidItemError if an item has no group, or two groups have the same key."""
    ids: dict[str, Any] = {}
    for i, row in enumerate(rows):
        group = row.get("group_id")
        if group is None:
            raise InvalidItemError(f"items[{i}] has no group_id; whiten mode group needs it for every item", i)
        other = ids.setdefault(str(group), group)
        if type(other) is not type(group):
            raise InvalidItemError(
                f"items[{i}].group_id is {group!r} and an earlier item's is {other!r}; the keys of whiten_stats, which are "
                "strings, cannot tell these groups apart, so pass all group_ids as strings, or all as integers",
                i,
            )
    return [str(row["group_id"]) for row in rows]


def ppo_results(chunks: list[Chunk], replies: Replies) -> list[PPOResult]:
    return [
        result
        for part, reply in zip(chunks, replies, strict=True)
        for result in read_results(PPOResult, as_object(reply, "/ppo-reward"), part.num_items)
    ]


def rewards_of(results: list[PPOResult], replies: Replies, scored: Replies) -> PPORewards:
    """`replies` have the statistics, `scored` (the same unless there were two rounds) the numbers of tokens."""
    kls = [result.kl for result in results if result.kl is not None]
    return PPORewards(results, whiten_stats(replies), mean(kls) if kls else None, read_usage(scored))


def whiten_stats(replies: Replies) -> AnyStats:
    """The merged statistics of all replies; raises BadReplyError if their forms differ."""
    try:
        stats: AnyStats = merge_stats(read_stats(reply.get("whiten_stats")) for reply in replies)
    except TypeError as error:
        raise BadReplyError(f"/ppo-reward was answered with whiten_stats that cannot be merged: {error}") from error
    return stats
