"""GET /metrics: every figure against what was really asked and answered, and labels that no client can multiply."""

import math
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app import __version__
from app.engine.engine import Engine
from app.engine.events import BatchScored, Forward, RequestOutcome
from app.observability.metrics import Metrics
from tests.api.asking import LOCK, TEA, ask
from tests.conftest import Serve

NAMES = {
    "reward_requests_total": {"route", "status"},
    "reward_request_seconds": {"route"},
    "reward_requests_in_flight": set(),
    "reward_queue_items": {"device"},
    "reward_queue_tokens": {"device"},
    "reward_queue_limit_tokens": {"device"},
    "reward_queue_seconds": set(),
    "reward_batch_sequences": set(),
    "reward_batch_tokens": set(),
    "reward_batch_computed_tokens": set(),
    "reward_tokens_total": {"model"},
    "reward_computed_tokens_total": {"model"},
    "reward_cached_tokens_total": {"model"},
    "reward_prefix_cache_tokens": {"model"},
    "reward_prefix_cache_limit_bytes": {"model"},
    "reward_prefix_cache_evicted_pages_total": {"model"},
    "reward_forward_seconds": {"model"},
    "reward_busy_seconds_total": {"device"},
    "reward_cancelled_requests_total": set(),
    "reward_rejected_requests_total": {"code"},
    "reward_truncated_sequences_total": {"model"},
    "reward_score": {"model"},
    "reward_scored_sequences_total": {"model"},
    "reward_safety_below_threshold_total": set(),
    "reward_nonfinite_scores_total": {"model"},
    "reward_reloads_total": {"outcome"},
    "reward_ready": set(),
    "reward_healthy": set(),
    "reward_log_lines_dropped_total": set(),
    "reward_build_info": {"version"},
}
"""The contract: what dashboards, alerts and the playground read. By the name that a query has, histograms by their own."""

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def values_of(text: str) -> Values:
    """Every sample of the text, by name and sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(values: Values, name: str, **labels: str) -> float:
    return values[name, tuple(sorted(labels.items()))]


def scrape(client: httpx.Client, **headers: str) -> Values:
    response = client.get("/metrics", headers=headers)
    assert response.status_code == 200
    return values_of(response.text)


def added(before: Values, after: Values) -> Values:
    """By how much each sample has grown."""
    return {sample: number - before.get(sample, 0.0) for sample, number in after.items()}


@pytest.fixture(scope="module")
def fresh(serve: Serve) -> Iterator[httpx.Client]:
    """Of a server that is asked nothing but how it is."""
    with serve() as client:
        yield client


def test_every_metric_of_the_contract_is_there_with_its_labels_before_its_first_event(fresh: httpx.Client) -> None:
    found: dict[str, set[str]] = {}
    fresh.get("/health")  # so that there is a route
    for name, labels in scrape(fresh):
        found.setdefault(name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count"), set()).update(
            {label for label, _ in labels} - {"le"}
        )
    own = {name: labels for name, labels in found.items() if name.startswith("reward_")}
    assert own == NAMES
    assert {"process_resident_memory_bytes", "python_gc_collections_total", "python_info"} <= set(found)


def test_what_was_answered_before_the_service_was_ready_is_not_counted(fresh: httpx.Client) -> None:
    values = scrape(fresh)
    assert value(values, "reward_scored_sequences_total", model="safety") == 0
    assert value(values, "reward_batch_sequences_count") == 0
    assert value(values, "reward_ready") == value(values, "reward_healthy") == 1
    assert value(values, "reward_build_info", version=__version__) == 1


def test_the_counts_are_those_of_the_answers(client: httpx.Client) -> None:
    before = scrape(client)
    answer = ask(client, "/score", {"items": [TEA, TEA, LOCK]})
    assert client.post("/score", json={"items": []}).status_code == 422
    values = added(before, scrape(client))
    assert value(values, "reward_requests_total", route="/score", status="200") == 1
    assert value(values, "reward_requests_total", route="/score", status="422") == 1
    assert value(values, "reward_request_seconds_count", route="/score") == 2
    assert value(values, "reward_rejected_requests_total", code="invalid_input") == 1
    assert value(values, "reward_requests_in_flight") == 0
    models = ("safety", "helpfulness")
    assert sum(value(values, "reward_tokens_total", model=name) for name in models) == answer["usage"]["num_tokens"]
    computed = sum(value(values, "reward_computed_tokens_total", model=name) for name in models)
    assert computed == answer["usage"]["num_computed_tokens"] < answer["usage"]["num_tokens"]
    for name in models:
        scores = [result["scores"][name]["score"] for result in answer["results"]]
        assert value(values, "reward_scored_sequences_total", model=name) == 3
        assert value(values, "reward_score_bucket", model=name, le="+Inf") == 3
        for bound in (-1.0, 0.0, 1.0):
            at_most = value(values, "reward_score_bucket", model=name, le=str(bound))
            assert at_most == sum(score <= bound for score in scores)
    probabilities = [result["scores"]["safety"]["probability"] for result in answer["results"]]
    assert value(values, "reward_safety_below_threshold_total") == sum(p < 0.15 for p in probabilities)
    assert value(values, "reward_queue_seconds_count") == 3
    assert value(values, "reward_busy_seconds_total", device="cpu") > 0
    assert value(values, "reward_queue_items", device="cpu") == value(values, "reward_queue_tokens", device="cpu") == 0


def test_sequences_that_were_cut_are_counted(client: httpx.Client) -> None:
    before = scrape(client)
    long = {"prompt": "tea " * 600, "response": "yes"}
    ask(client, "/score", {"items": [long, TEA], "truncation": "left", "models": ["safety"]})
    values = added(before, scrape(client))
    assert value(values, "reward_truncated_sequences_total", model="safety") == 1
    assert value(values, "reward_truncated_sequences_total", model="helpfulness") == 0


def test_a_compatibility_route_is_counted_with_its_own_errors(client: httpx.Client) -> None:
    before = scrape(client)
    assert client.post("/classify", json={"input": ["tea"]}).status_code == 200
    assert client.post("/classify", json={"input": []}).status_code == 400
    values = added(before, scrape(client))
    assert value(values, "reward_requests_total", route="/classify", status="200") == 1
    assert value(values, "reward_requests_total", route="/classify", status="400") == 1
    assert value(values, "reward_rejected_requests_total", code="invalid_input") == 1


def test_no_client_can_make_a_label(client: httpx.Client) -> None:
    before = scrape(client)
    for path in ("/a", "/b?x=1", "/score/x", "/ui%00", "/metrics/x"):
        client.get(path)
    client.request("PROPFIND", "/score")
    client.get("/docs")
    counts = added(before, scrape(client))
    routes = {dict(labels)["route"] for (name, labels), n in counts.items() if name == "reward_requests_total" and n}
    assert routes == {"unmatched", "/score", "/docs", "/metrics"}


def test_no_series_says_only_when_it_was_created(client: httpx.Client) -> None:
    assert not [name for name, _ in scrape(client) if name.endswith("_created")]


def test_a_scraper_that_asks_for_openmetrics_gets_it(client: httpx.Client) -> None:
    response = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_metrics_ask_for_the_key_where_there_is_one(serve: Serve) -> None:
    with serve(api_keys=("scrape-key",)) as client:
        assert client.get("/metrics").status_code == 401
        values = scrape(client, authorization="Bearer scrape-key")
        assert value(values, "reward_rejected_requests_total", code="unauthorized") == 1
        assert value(values, "reward_requests_total", route="/metrics", status="401") == 1


def test_a_draining_service_can_still_be_scraped(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.app.state.service, "draining", True)  # type: ignore[attr-defined]
    values = scrape(client)
    assert (value(values, "reward_ready"), value(values, "reward_healthy")) == (0, 1)


def test_two_services_in_one_process_count_apart(serve: Serve) -> None:
    with serve() as one, serve() as other:
        ask(one, "/score", {"items": [TEA]})
        assert value(scrape(one), "reward_scored_sequences_total", model="safety") == 1
        assert value(scrape(other), "reward_scored_sequences_total", model="safety") == 0


class Nobody:
    """A service that is loading."""

    engine: Engine[Any] | None = None
    num_in_flight = 0
    draining = False


def metrics(**options: Any) -> Metrics:
    return Metrics(Nobody(), **{"safety_threshold": 0.15} | options)


def forward(model: str, *scores: float) -> Forward:
    return Forward(model, 0.0, 0.5, 10 * len(scores), 7 * len(scores), 2 * len(scores), 0, list(scores))


def batch(*forwards: Forward) -> BatchScored:
    return BatchScored("cpu", 1, 10, 7, [0.25], 1.0, forwards)


def told(own: Metrics) -> Values:
    return values_of(own.exposition("")[0].decode())


def test_a_service_that_loads_is_healthy_and_not_ready() -> None:
    values = told(metrics())
    assert (value(values, "reward_ready"), value(values, "reward_healthy")) == (0, 1)


def test_the_threshold_itself_is_not_below_it_and_only_the_safety_model_counts() -> None:
    own = metrics(safety_threshold=0.15)
    threshold = math.log(0.15 / 0.85)
    own.batch_scored(batch(forward("safety", threshold, threshold - 1e-9, 3.0), forward("helpfulness", -9.0)))
    assert value(told(own), "reward_safety_below_threshold_total") == 1


def test_scores_that_are_not_finite_are_counted_apart() -> None:
    own = metrics()
    own.batch_scored(batch(forward("safety", math.nan, math.inf, -math.inf, 1.0)))
    values = told(own)
    assert value(values, "reward_nonfinite_scores_total", model="safety") == 3
    assert value(values, "reward_scored_sequences_total", model="safety") == 1
    assert value(values, "reward_score_bucket", model="safety", le="+Inf") == 1


def test_only_cancelled_requests_count_as_such() -> None:
    own = metrics()
    outcomes: tuple[RequestOutcome, ...] = ("scored", "failed", "cancelled")
    for outcome in outcomes:
        own.request_ended(outcome)
    assert value(told(own), "reward_cancelled_requests_total") == 1


def test_events_of_several_devices_at_once_are_all_counted() -> None:
    own = metrics()

    def work() -> None:
        for _ in range(500):
            own.batch_scored(batch(forward("safety", 1.0)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = told(own)
    assert value(values, "reward_busy_seconds_total", device="cpu") == 2000
    assert value(values, "reward_scored_sequences_total", model="safety") == 2000


def test_reloads_are_counted_by_outcome() -> None:
    own = metrics()
    own.reloaded("refused")
    values = told(own)
    assert value(values, "reward_reloads_total", outcome="refused") == 1
    assert value(values, "reward_reloads_total", outcome="swapped") == 0
