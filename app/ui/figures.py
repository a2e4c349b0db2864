"""What the Live tab shows, from the text of /metrics: the state now, rates over the last minute, histograms since start."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from app import metrics

WINDOW_SECONDS = 60
RECENT_SECONDS = 5


class Exposition:
    """One scrape: values by metric and labels."""

    def __init__(self, text: str) -> None:
        self._samples = defaultdict(list)
        for sample in metrics.samples(text):
            self._samples[sample.name].append((sample.labels, sample.value))

    def total(self, name: str, **labels: str) -> float:
        """The sum over the metric's samples that have these labels; 0 where there is none."""
        return sum(value for has, value in self._samples[name] if labels.items() <= has.items())

    def by(self, name: str, label: str) -> dict[str, float]:
        return {has[label]: value for has, value in self._samples[name]}

    def histogram(self, name: str, **labels: str) -> list[tuple[float, float]]:
        """Upper edges, the last infinite, and how many values fell between each and the one before."""
        cumulative = sorted(
            (float(has["le"]), value) for has, value in self._samples[f"{name}_bucket"] if labels.items() <= has.items()
        )
        below = [0.0, *(value for _, value in cumulative)]
        return [(edge, value - before) for (edge, value), before in zip(cumulative, below, strict=False)]


@dataclass(frozen=True, slots=True)
class Moment:
    """The counters at one time, in seconds of a clock that never goes back."""

    at: float
    scores: float
    tokens: float
    computed: float
    batches: float
    batched: float
    busy: float
    waited: float
    taken: float
    queued: float

    @classmethod
    def of(cls, seen: Exposition, at: float) -> "Moment":
        return cls(
            at=at,
            scores=seen.total("reward_scored_sequences_total"),  # a sequence's, by each model that was asked
            tokens=seen.total("reward_tokens_total"),
            computed=seen.total("reward_computed_tokens_total"),
            batches=seen.total("reward_batch_sequences_count"),
            batched=seen.total("reward_batch_sequences_sum"),
            busy=seen.total("reward_busy_seconds_total"),
            waited=seen.total("reward_queue_seconds_sum"),
            taken=seen.total("reward_queue_seconds_count"),
            queued=seen.total("reward_queue_items"),
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two moments; None where nothing did that could be averaged."""

    seconds: float
    scores_per_second: float
    tokens_per_second: float
    batch_sequences: float | None
    shared: float | None
    busy: float
    wait_seconds: float | None


def between(a: Moment, b: Moment, num_devices: int = 1) -> Rates:
    seconds = b.at - a.at
    tokens, computed = b.tokens - a.tokens, b.computed - a.computed
    return Rates(
        seconds,
        scores_per_second=(b.scores - a.scores) / seconds if seconds else 0.0,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        batch_sequences=ratio(b.batched - a.batched, b.batches - a.batches),
        shared=1 - computed / tokens if tokens else None,
        busy=min((b.busy - a.busy) / (seconds * max(num_devices, 1)), 1.0) if seconds else 0.0,
        wait_seconds=ratio(b.waited - a.waited, b.taken - a.taken),
    )


def ratio(whole: float, count: float) -> float | None:
    return whole / count if count else None


def kept(history: Sequence[Moment], now: Moment) -> list[Moment]:
    """The history with `now`, without what is older than the window; begun anew where the counters were."""
    if history and (now.at <= history[-1].at or now.tokens < history[-1].tokens):
        return [now]
    return [moment for moment in history if now.at - moment.at <= WINDOW_SECONDS] + [now]


def before(history: Sequence[Moment], seconds: float) -> Moment:
    """The oldest moment of the last `seconds`, never the newest itself where there is another."""
    now = history[-1].at
    recent = [moment for moment in history if now - moment.at <= seconds + 0.5]
    return recent[0] if len(recent) > 1 else history[max(len(history) - 2, 0)]
