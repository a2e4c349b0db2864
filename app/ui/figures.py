"""Computes the Live tab's figures from /metrics: the current state, rates over the last minute, histograms since start."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from app.observability import metrics

WINDOW_SECONDS = 60
RECENT_SECONDS = 5
MONITORING = frozenset({"/health", "/ready", "/metrics", "/info"})
"""Routes whose requests say nothing about the latency of scores."""


class Exposition:
    """The samples of one scrape, by metric and labels."""

    def __init__(self, text: str) -> None:
        self._samples = defaultdict(list)
        for sample in metrics.samples(text):
            self._samples[sample.name].append((sample.labels, sample.value))

    def total(self, name: str, **labels: str) -> float:
        """The sum of the metric's samples with these labels; 0 if there are none."""
        return sum(value for has, value in self._samples[name] if labels.items() <= has.items())

    def cumulative(self, name: str, label: str, without: Collection[str]) -> dict[float, float]:
        """A histogram's counts up to each bucket's upper edge, summed over the series whose `label` is not in `without`."""
        counts: dict[float, float] = defaultdict(float)
        for has, value in self._samples[f"{name}_bucket"]:
            if has[label] not in without:
                counts[float(has["le"])] += value
        return dict(sorted(counts.items()))

    def by(self, name: str, label: str) -> dict[str, float]:
        return {has[label]: value for has, value in self._samples[name]}

    def histogram(self, name: str, **labels: str) -> list[tuple[float, float]]:
        """(upper edge, count) per bucket; a count excludes the buckets below, and the last edge is infinite."""
        cumulative = sorted(
            (float(has["le"]), value) for has, value in self._samples[f"{name}_bucket"] if labels.items() <= has.items()
        )
        below = [0.0, *(value for _, value in cumulative)]
        return [(edge, value - before) for (edge, value), before in zip(cumulative, below, strict=False)]


@dataclass(frozen=True, slots=True)
class Moment:
    """The counters at one time; `at` is in seconds of a monotonic clock."""

    at: float
    scores: float
    tokens: float
    computed: float
    cached: float
    batches: float
    batched: float
    busy: float
    waited: float
    taken: float
    queued: float
    latencies: Mapping[float, float] = field(default_factory=dict)
    """Requests answered within each number of seconds; those of monitoring are left out."""
    rejected: float = 0.0

    @classmethod
    def of(cls, seen: Exposition, at: float) -> "Moment":
        return cls(
            at=at,
            scores=seen.total("reward_scored_sequences_total"),  # one per sequence and model
            tokens=seen.total("reward_tokens_total"),
            computed=seen.total("reward_computed_tokens_total"),
            cached=seen.total("reward_cached_tokens_total"),
            batches=seen.total("reward_batch_sequences_count"),
            batched=seen.total("reward_batch_sequences_sum"),
            busy=seen.total("reward_busy_seconds_total"),
            waited=seen.total("reward_queue_seconds_sum"),
            taken=seen.total("reward_queue_seconds_count"),
            queued=seen.total("reward_queue_items"),
            latencies=seen.cumulative("reward_request_seconds", "route", MONITORING),
            rejected=seen.total("reward_rejected_requests_total"),
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates and means between two moments; a mean is None if there was nothing to average."""

    seconds: float
    scores_per_second: float
    tokens_per_second: float
    batch_sequences: float | None
    shared: float | None
    cached: float | None
    busy: float
    wait_seconds: float | None
    requests: float
    rejected: float
    p50_seconds: float | None
    p99_seconds: float | None


def between(a: Moment, b: Moment, num_devices: int = 1) -> Rates:
    seconds = b.at - a.at
    tokens, computed = b.tokens - a.tokens, b.computed - a.computed
    latencies = {edge: count - a.latencies.get(edge, 0.0) for edge, count in b.latencies.items()}
    return Rates(
        seconds,
        scores_per_second=(b.scores - a.scores) / seconds if seconds else 0.0,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        batch_sequences=ratio(b.batched - a.batched, b.batches - a.batches),
        shared=1 - computed / tokens if tokens else None,
        cached=ratio(b.cached - a.cached, tokens),
        busy=min((b.busy - a.busy) / (seconds * max(num_devices, 1)), 1.0) if seconds else 0.0,
        wait_seconds=ratio(b.waited - a.waited, b.taken - a.taken),
        requests=max(latencies.values(), default=0.0),
        rejected=b.rejected - a.rejected,
        p50_seconds=quantile(latencies, 0.5),
        p99_seconds=quantile(latencies, 0.99),
    )


def quantile(cumulative: Mapping[float, float], share: float) -> float | None:
    """The value below which this share of a histogram's observations is, as Prometheus' histogram_quantile estimates it:
    linear within a bucket, and the last finite edge for what is above it. None if there are no observations."""
    total = max(cumulative.values(), default=0.0)
    if not total:
        return None
    low, below, wanted = 0.0, 0.0, share * total
    for edge, count in sorted(cumulative.items()):
        if count >= wanted:
            return low if math.isinf(edge) else low + (edge - low) * (wanted - below) / (count - below)
        low, below = edge, count
    return low


def ratio(whole: float, count: float) -> float | None:
    return whole / count if count else None


def kept(history: Sequence[Moment], now: Moment) -> list[Moment]:
    """The history with `now` appended and without moments before the window; it restarts when the counters were reset."""
    if history and (now.at <= history[-1].at or now.tokens < history[-1].tokens):
        return [now]
    return [moment for moment in history if now.at - moment.at <= WINDOW_SECONDS] + [now]


def before(history: Sequence[Moment], seconds: float) -> Moment:
    """The oldest moment of the last `seconds`; not the newest one if there is another."""
    now = history[-1].at
    recent = [moment for moment in history if now - moment.at <= seconds + 0.5]
    return recent[0] if len(recent) > 1 else history[max(len(history) - 2, 0)]
