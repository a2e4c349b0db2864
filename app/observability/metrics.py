"""The service's Prometheus metrics, and the methods that count requests and the engine's events.

Every service has a registry of its own, so two services in one process count separately. Label values are bounded: the app's
own routes, HTTP statuses, the codes of `app.errors`, and the names of models and devices. Every series whose labels are
known in advance starts at 0, so `rate()` sees its first event too.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Metric, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.samples import Sample

from app import __version__
from app.engine.engine import Engine
from app.engine.events import BatchScored, Forward, RequestOutcome
from app.errors import RequestError
from app.observability import logs
from app.observability.bulk_histogram import BulkHistogram
from app.rewards.selection import selects_safety

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKENS = tuple(float(1 << n) for n in range(4, 18))
SEQUENCES = tuple(float(1 << n) for n in range(11))
SCORES = (-10.0, -8.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)

ReloadOutcome = Literal["swapped", "refused"]
RELOAD_OUTCOMES: tuple[ReloadOutcome, ...] = ("swapped", "refused")


class ServiceState(Protocol):
    """The attributes of the service that a scrape reads."""

    engine: Engine[Any] | None
    num_in_flight: int
    draining: bool


class Metrics:
    """The engine's `Listener`. Every method may be called from any thread.

    `safety_threshold` is a probability in (0, 1).
    """

    def __init__(self, state: ServiceState, *, safety_threshold: float) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # of the whole process; a `_created` series per series doubles what is stored
        self._safety_threshold = safety_threshold
        self.registry = CollectorRegistry()
        self._series: dict[tuple[Counter, tuple[str | int, ...]], Counter] = {}
        self._create_request_metrics()
        self._create_batch_metrics()
        self._create_model_metrics()
        self.registry.register(StateCollector(state))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"reward_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float], *labels: str) -> BulkHistogram:
        return BulkHistogram(f"reward_{name}", help_text, buckets, *labels, registry=self.registry)

    def _create_request_metrics(self) -> None:
        self._requests = self._counter("requests", "HTTP requests answered", "route", "status")
        self._request_seconds = self._histogram(
            "request_seconds",
            "Seconds from receiving a request's headers to sending its whole response",
            SECONDS,
            "route",
        )
        self._rejected = self._counter("rejected_requests", "HTTP requests answered with an error", "code")
        self._cancelled = self._counter("cancelled_requests", "Requests whose client disconnected before the response")
        self._reloads = self._counter("reloads", "Reloads of the checkpoints", "outcome")
        for code in sorted(codes_of(RequestError)):
            self._rejected.labels(code)
        for outcome in RELOAD_OUTCOMES:
            self._reloads.labels(outcome)

    def _create_batch_metrics(self) -> None:
        self._busy_seconds = self._counter("busy_seconds", "Seconds in which a device computed batches", "device")
        self._queue_seconds = self._histogram("queue_seconds", "Seconds that a sequence waited in the queue", SECONDS)
        self._batch_sequences = self._histogram("batch_sequences", "Sequences per batch", SEQUENCES)
        self._batch_tokens = self._histogram("batch_tokens", "Tokens per batch, before sharing prefixes", TOKENS)
        self._batch_computed_tokens = self._histogram(
            "batch_computed_tokens", "Tokens per batch that were computed, after sharing prefixes", TOKENS
        )

    def _create_model_metrics(self) -> None:
        self._tokens = self._counter("tokens", "Tokens of the scored sequences, before sharing prefixes", "model")
        self._computed_tokens = self._counter(
            "computed_tokens", "Tokens that were computed, after sharing prefixes", "model"
        )
        self._cached_tokens = self._counter(
            "cached_tokens", "Tokens of the scored sequences that were in the prefix cache", "model"
        )
        self._truncated = self._counter("truncated_sequences", "Sequences that were truncated before scoring", "model")
        self._scored = self._counter("scored_sequences", "Sequences that got a finite score", "model")
        self._nonfinite = self._counter("nonfinite_scores", "Sequences whose score was NaN or infinite", "model")
        self._below_threshold = self._counter(
            "safety_below_threshold", "Sequences with a safety probability below REWARD_SAFETY_THRESHOLD"
        )
        self._forward_seconds = self._histogram(
            "forward_seconds", "Seconds per forward pass of a batch", SECONDS, "model"
        )
        self._scores = self._histogram("score", "Raw scores", SCORES, "model")

    def _of(self, counter: Counter, *labels: str | int) -> Counter:
        """`counter.labels(*labels)`, which takes a lock and a microsecond, looked up once per series."""
        found = self._series.get((counter, labels))
        if found is None:
            found = self._series[counter, labels] = counter.labels(*labels)
        return found

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that the Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    # -- HTTP -------------------------------------------------------------------------------------------------------

    def request_answered(self, route: str, status: int, code: str | None, seconds: float) -> None:
        """Counts one response. `route` is one of the app's own paths, `code` the error's code if it is an error."""
        self._of(self._requests, route, status).inc()
        self._request_seconds.observe((seconds,), route)
        if code is not None:
            self._of(self._rejected, code).inc()

    def reloaded(self, outcome: ReloadOutcome) -> None:
        self._of(self._reloads, outcome).inc()

    # -- the engine -------------------------------------------------------------------------------------------------

    def listen(self, engine: Engine[Any]) -> None:
        """Receives the engine's events from now on."""
        for model in engine.models:
            for by_model in (
                self._tokens,
                self._computed_tokens,
                self._cached_tokens,
                self._truncated,
                self._scored,
                self._nonfinite,
            ):
                self._of(by_model, model)
            self._forward_seconds.observe((), model)
            self._scores.observe((), model)
        for device in engine.devices:
            self._of(self._busy_seconds, str(device))
        engine.events.listener = self

    def batch_scored(self, event: BatchScored) -> None:
        self._batch_sequences.observe((event.num_sequences,))
        self._batch_tokens.observe((event.num_tokens,))
        self._batch_computed_tokens.observe((event.num_computed_tokens,))
        self._queue_seconds.observe(event.queue_seconds)
        self._of(self._busy_seconds, event.device).inc(event.seconds)
        for forward in event.forwards:
            self._forward_ended(forward)

    def _forward_ended(self, forward: Forward) -> None:
        model = forward.model
        finite = [score for score in forward.scores if math.isfinite(score)]
        self._of(self._tokens, model).inc(forward.num_tokens)
        self._of(self._computed_tokens, model).inc(forward.num_computed_tokens)
        self._of(self._cached_tokens, model).inc(forward.num_cached_tokens)
        self._of(self._truncated, model).inc(forward.num_truncated)
        self._of(self._scored, model).inc(len(finite))
        self._of(self._nonfinite, model).inc(len(forward.scores) - len(finite))
        self._forward_seconds.observe((forward.seconds,), model)
        self._scores.observe(finite, model)
        if model == "safety":
            self._below_threshold.inc(
                sum(selects_safety(score, is_safety=False, threshold=self._safety_threshold) for score in finite)
            )

    def request_ended(self, outcome: RequestOutcome) -> None:
        if outcome == "cancelled":
            self._cancelled.inc()


class StateCollector:
    """Collects the metrics that are not counted but read from the service at the time of the scrape."""

    def __init__(self, state: ServiceState) -> None:
        self.state = state

    def collect(self) -> Iterator[Metric]:
        state, engine = self.state, self.state.engine
        is_healthy = engine is None or engine.is_alive
        is_ready = engine is not None and is_healthy and not state.draining
        build = GaugeMetricFamily("reward_build_info", "Always 1; the label is the version", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield GaugeMetricFamily("reward_ready", "1 if the models are loaded and requests are accepted", is_ready)
        yield GaugeMetricFamily("reward_healthy", "0 if a model thread has died", is_healthy)
        yield GaugeMetricFamily("reward_requests_in_flight", "Requests in progress", state.num_in_flight)
        yield CounterMetricFamily("reward_log_lines_dropped", "Log lines that were not written", logs.num_dropped())
        items = GaugeMetricFamily("reward_queue_items", "Sequences waiting for a batch", labels=["device"])
        tokens = GaugeMetricFamily(
            "reward_queue_tokens", "Tokens of the waiting sequences, before sharing prefixes", labels=["device"]
        )
        limit = GaugeMetricFamily(
            "reward_queue_limit_tokens",
            "Tokens that the queue may hold; requests beyond wait for room",
            labels=["device"],
        )
        for device, thread in engine.devices.items() if engine is not None else ():
            items.add_metric([str(device)], thread.scheduler.num_jobs)
            tokens.add_metric([str(device)], thread.scheduler.num_tokens)
            limit.add_metric([str(device)], thread.scheduler.max_queue_tokens)
        yield from (items, tokens, limit)
        yield from self._prefix_caches(engine.models if engine is not None else {})

    def _prefix_caches(self, models: Mapping[str, Any]) -> Iterator[Metric]:
        """What the models' prefix caches hold; a model without one has no series."""
        tokens = GaugeMetricFamily("reward_prefix_cache_tokens", "Tokens in the prefix cache", labels=["model"])
        limit = GaugeMetricFamily(
            "reward_prefix_cache_limit_bytes", "Bytes that the prefix cache may take", labels=["model"]
        )
        evicted = CounterMetricFamily(
            "reward_prefix_cache_evicted_pages", "Pages of up to 64 tokens evicted since the load", labels=["model"]
        )
        for name, model in models.items():
            if model.cache is not None:
                tokens.add_metric([name], model.cache.prefixes.statistics.num_cached_tokens)
                limit.add_metric([name], model.cache.max_bytes)
                evicted.add_metric([name], model.cache.prefixes.statistics.num_evicted_pages)
        yield from (tokens, limit, evicted)


def codes_of(error: type[RequestError]) -> set[str]:
    """The codes of this error class and of its subclasses at any depth."""
    own = {error.code} if hasattr(error, "code") else set()
    return own.union(*(codes_of(kind) for kind in error.__subclasses__()))


def samples(text: str) -> Iterator[Sample]:
    """The samples of a page in Prometheus's text format."""
    return (sample for family in text_string_to_metric_families(text) for sample in family.samples)
