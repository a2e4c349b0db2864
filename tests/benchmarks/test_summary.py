import dataclasses
import json
import math

import pytest

from benchmarks.agreement import DisagreementError, largest_difference
from benchmarks.results import Sample, StartUp, WorkloadResult
from benchmarks.summary import as_json, format_rows, summarize
from benchmarks.table import format_table

SAMPLE = Sample(
    workload="distinct",
    target="service",
    repeat=0,
    seconds=2.0,
    num_requests=96,
    num_tokens=1000,
    num_computed_tokens=900,
    latency_p50=1.0,
    latency_p99=2.0,
    processor_seconds=3.84,
    useful_flops=80,
    executed_flops=60,
    gemm_flops_per_second=50.0,
)


def sample(target: str, repeat: int, seconds: float) -> Sample:
    return dataclasses.replace(SAMPLE, target=target, repeat=repeat, seconds=seconds)


def test_a_row_has_the_median_and_the_extremes_over_the_repeats() -> None:
    row = summarize([sample("service", repeat, seconds) for repeat, seconds in enumerate([1.0, 2.0, 4.0])])[0]
    rates = row.requests_per_second
    assert (rates.median, rates.low, rates.high) == (48.0, 24.0, 96.0)
    assert row.tokens_per_second.median == 500.0


def test_ratios_are_taken_inside_a_repeat() -> None:
    samples = [sample("service", 0, 1.0), sample("vllm", 0, 2.0), sample("vllm", 1, 9.0), sample("service", 1, 3.0)]
    rows = {row.target: row for row in summarize(samples)}
    assert rows["service"].service_ratio is not None
    assert rows["service"].service_ratio.median == 1.0
    assert rows["vllm"].service_ratio is not None
    assert (rows["vllm"].service_ratio.low, rows["vllm"].service_ratio.high) == (2.0, 3.0)


def test_without_the_service_there_is_no_ratio() -> None:
    assert summarize([sample("vllm", 0, 1.0)])[0].service_ratio is None


def test_processor_time_is_per_request_and_over_the_services_in_the_same_repeat() -> None:
    baseline = dataclasses.replace(sample("baseline", 0, 1.0), processor_seconds=1.92)
    rows = {row.target: row for row in summarize([sample("service", 0, 1.0), baseline])}
    assert rows["service"].processor_ms.median == pytest.approx(40.0)
    assert rows["baseline"].processor_ms.median == pytest.approx(20.0)
    assert rows["baseline"].processor_ratio is not None
    assert rows["baseline"].processor_ratio.median == pytest.approx(0.5)


def test_shares_are_flops_over_time_over_the_gemm_rate() -> None:
    row = summarize([SAMPLE])[0]
    assert row.useful_share is not None
    assert row.useful_share.median == pytest.approx(0.8)
    assert row.executed_share is not None
    assert row.executed_share.median == pytest.approx(0.6)


def test_a_server_that_scores_nothing_has_no_shares() -> None:
    row = summarize([dataclasses.replace(SAMPLE, target="echo", useful_flops=None, executed_flops=None)])[0]
    assert row.useful_share is None
    assert row.executed_share is None
    assert "echo" in format_rows([row])


def test_the_json_holds_every_sample_and_survives_a_round_trip() -> None:
    result = WorkloadResult((SAMPLE,), (StartUp("distinct", "service", 3.0, 10**9),), 2e-6)
    document = as_json([result], {"seed": "0"})
    assert json.loads(json.dumps(document)) == document
    assert document["samples"] == [dataclasses.asdict(SAMPLE)]
    assert document["largest_score_difference"] == 2e-6


def test_a_table_aligns_names_left_and_figures_right() -> None:
    table = format_table(("workload", "server", "req/s"), [("distinct", "vllm", "2.4"), ("groups", "service", "10.0")])
    assert table.splitlines() == [
        "| workload   | server   |   req/s |",
        "|:-----------|:---------|--------:|",
        "| distinct   | vllm     |     2.4 |",
        "| groups     | service  |    10.0 |",
    ]


def test_a_table_refuses_a_row_of_another_width() -> None:
    with pytest.raises(ValueError, match="1 cells, the header has 2"):
        format_table(("a", "b"), [("only",)])


def test_scores_that_agree_give_their_largest_difference() -> None:
    scores = {"service": [1.0, 2.0], "vllm": [1.0, 2.00005], "padded": [1.00001, 2.0]}
    assert largest_difference(scores) == pytest.approx(5e-5)


def test_nothing_to_compare_agrees() -> None:
    assert largest_difference({}) == 0.0


@pytest.mark.parametrize("wrong", [2.001, math.nan, math.inf])
def test_a_score_that_differs_is_named_with_its_text_and_servers(wrong: float) -> None:
    with pytest.raises(DisagreementError, match=r"text 1 .*service 2\.0.*vllm"):
        largest_difference({"service": [1.0, 2.0], "vllm": [1.0, wrong]})


def test_a_missing_score_is_a_disagreement() -> None:
    with pytest.raises(DisagreementError, match="numbers of scores differ"):
        largest_difference({"service": [1.0, 2.0], "vllm": [1.0]})
