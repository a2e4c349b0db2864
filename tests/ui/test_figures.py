from dataclasses import replace

import pytest

from app.ui.figures import WINDOW_SECONDS, Exposition, Moment, before, between, kept, quantile

TEXT = """# TYPE reward_queue_items gauge
reward_queue_items{device="cpu"} 3.0
reward_queue_items{device="cuda:0"} 4.0
# TYPE reward_tokens_total counter
reward_tokens_total{model="safety"} 100.0
reward_tokens_total{model="helpfulness"} 100.0
# TYPE reward_computed_tokens_total counter
reward_computed_tokens_total{model="safety"} 60.0
reward_computed_tokens_total{model="helpfulness"} 60.0
# TYPE reward_scored_sequences_total counter
reward_scored_sequences_total{model="safety"} 8.0
reward_scored_sequences_total{model="helpfulness"} 5.0
# TYPE reward_batch_sequences histogram
reward_batch_sequences_bucket{le="1.0"} 0.0
reward_batch_sequences_bucket{le="+Inf"} 2.0
reward_batch_sequences_count 2.0
reward_batch_sequences_sum 8.0
# TYPE reward_score histogram
reward_score_bucket{le="10.0",model="safety"} 8.0
reward_score_bucket{le="-1.0",model="safety"} 3.0
reward_score_bucket{le="0.0",model="safety"} 5.0
reward_score_bucket{le="+Inf",model="safety"} 9.0
reward_score_bucket{le="+Inf",model="helpfulness"} 1.0
"""
NOTHING = Moment.of(Exposition(""), 0.0)


def test_an_exposition_adds_up_what_has_the_labels_that_are_asked_for() -> None:
    seen = Exposition(TEXT)
    assert seen.total("reward_queue_items") == 7
    assert seen.total("reward_queue_items", device="cpu") == 3
    assert seen.total("reward_unknown") == 0
    assert seen.by("reward_queue_items", "device") == {"cpu": 3, "cuda:0": 4}


def test_a_histogram_counts_between_its_edges_in_order() -> None:
    bins = Exposition(TEXT).histogram("reward_score", model="safety")
    assert bins == [(-1.0, 3), (0.0, 2), (10.0, 3), (float("inf"), 1)]


def test_every_models_scores_count_though_one_model_was_asked_less() -> None:
    moment = Moment.of(Exposition(TEXT), 5.0)
    assert (moment.at, moment.scores, moment.tokens, moment.queued) == (5.0, 13, 200, 7)


def test_rates_are_what_happened_between_two_moments() -> None:
    earlier = Moment.of(Exposition(TEXT), 10.0)
    later = replace(
        earlier, at=12.0, scores=23, tokens=400, computed=170, batches=4, batched=24, busy=1.0, waited=0.3, taken=3
    )
    rates = between(earlier, later)
    assert (rates.scores_per_second, rates.tokens_per_second) == (5, 100)
    assert (rates.batch_sequences, rates.busy) == (8, 0.5)
    assert rates.shared == pytest.approx(0.75)
    assert rates.wait_seconds == pytest.approx(0.1)


def test_where_nothing_happened_there_is_nothing_to_average() -> None:
    rates = between(NOTHING, replace(NOTHING, at=1.0))
    assert (rates.batch_sequences, rates.shared, rates.wait_seconds) == (None, None, None)
    assert (rates.scores_per_second, rates.busy) == (0, 0)
    assert between(NOTHING, NOTHING).tokens_per_second == 0


def test_the_history_is_a_window_and_begins_anew_with_the_counters() -> None:
    history: list[Moment] = []
    for second in range(2 * WINDOW_SECONDS):
        history = kept(history, replace(NOTHING, at=float(second), tokens=float(second)))
    assert [history[0].at, history[-1].at] == [WINDOW_SECONDS - 1, 2 * WINDOW_SECONDS - 1]
    restarted = replace(NOTHING, at=history[-1].at + 1, tokens=0.0)
    assert kept(history, restarted) == [restarted]


def test_recent_is_never_the_newest_moment_alone() -> None:
    history = [replace(NOTHING, at=at) for at in (0.0, 1.0, 20.0)]
    assert before(history, 5).at == 1.0
    assert before([*history, replace(NOTHING, at=21.0), replace(NOTHING, at=22.0)], 5).at == 20.0
    assert before(history[:1], 5) is history[0]


LATENCIES = """reward_request_seconds_bucket{le="0.1",route="/score"} 2.0
reward_request_seconds_bucket{le="0.5",route="/score"} 4.0
reward_request_seconds_bucket{le="+Inf",route="/score"} 4.0
reward_request_seconds_bucket{le="0.1",route="/compare"} 0.0
reward_request_seconds_bucket{le="0.5",route="/compare"} 4.0
reward_request_seconds_bucket{le="+Inf",route="/compare"} 6.0
reward_request_seconds_bucket{le="0.1",route="/metrics"} 900.0
reward_request_seconds_bucket{le="+Inf",route="/metrics"} 900.0
reward_rejected_requests_total{code="too_long"} 3.0
"""


def test_latencies_are_those_of_all_routes_but_the_monitoring_ones() -> None:
    moment = Moment.of(Exposition(LATENCIES), 1.0)
    assert moment.latencies == {0.1: 2, 0.5: 8, float("inf"): 10}
    rates = between(NOTHING, moment)
    assert (rates.requests, rates.rejected) == (10, 3)
    assert rates.p50_seconds == pytest.approx(0.1 + 0.4 * 3 / 6)
    assert rates.p99_seconds == 0.5


def test_only_the_requests_between_two_moments_count() -> None:
    earlier = replace(NOTHING, latencies={0.1: 5.0, float("inf"): 5.0}, rejected=1.0)
    later = replace(NOTHING, at=1.0, latencies={0.1: 5.0, float("inf"): 5.0}, rejected=1.0)
    rates = between(earlier, later)
    assert (rates.requests, rates.rejected, rates.p50_seconds, rates.p99_seconds) == (0, 0, None, None)


@pytest.mark.parametrize(("share", "value"), [(0.25, 0.5), (0.5, 1.0), (0.75, 2.0), (0.99, 2.96)])
def test_a_quantile_is_linear_within_its_bucket(share: float, value: float) -> None:
    assert quantile({1.0: 50.0, 3.0: 100.0, float("inf"): 100.0}, share) == pytest.approx(value)
