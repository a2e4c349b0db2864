"""The capacity model: counts by hand, its own consistency, and the document that shows what it says."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.capacity import (
    LLAMA_7B,
    SCENARIOS,
    SMOLLM2_135M,
    TRAINERS,
    Engine,
    Traffic,
    group_work,
    item_flops,
    items_per_second,
    prediction,
    weight_bytes,
    working_bytes_per_token,
)
from benchmarks.flops import ModelShape, Work, shared_work, trunk_flops, whole_work

SHAPE = ModelShape(num_layers=2, hidden_size=8, intermediate_size=16, num_heads=4, num_kv_heads=2, head_dim=2)
GROUP = Traffic(1, 4, step_seconds=1, num_responses=4, prompt_tokens=3, response_tokens=2)
ENGINE = Engine("x", 1e6, 0.5, 4, 64, loop_requests=10, tokenizer_tokens=100, network_bytes=1e9)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
def test_a_group_is_the_tree_of_its_sequences(prompt: int, responses: int, response: int) -> None:
    traffic = replace(GROUP, prompt_tokens=prompt, num_responses=responses, response_tokens=response)
    sequences = [[*range(prompt), *[100 + n] * response] for n in range(responses)]
    assert group_work(traffic) == shared_work(sequences)
    assert traffic.sharing_ratio == pytest.approx(1 - shared_work(sequences).num_rows / whole_work(sequences).num_rows)


def test_an_items_work_is_its_part_of_the_groups() -> None:
    assert group_work(GROUP) == Work(num_rows=11, num_pairs=6 + 4 * 9, num_scored=4)
    assert item_flops(SHAPE, GROUP) == trunk_flops(SHAPE, Work(11, 42, 4), pruned_last_layer=True) / 4


def test_each_bound_is_a_rate_over_what_an_item_takes_of_it() -> None:
    bounds = items_per_second(ENGINE, [SHAPE], GROUP)
    assert bounds["arithmetic"] == pytest.approx(1e6 * 0.5 / item_flops(SHAPE, GROUP))
    assert (bounds["event loop"], bounds["tokenization"]) == (10, 20)
    assert items_per_second(ENGINE, [SHAPE] * 2, GROUP)["arithmetic"] == pytest.approx(bounds["arithmetic"] / 2)
    assert items_per_second(ENGINE, [SHAPE], replace(GROUP, items_per_request=3))["event loop"] == 30


def test_sharing_less_costs_more() -> None:
    alone = replace(TRAINERS, num_responses=1)
    assert alone.sharing_ratio == 0
    assert item_flops(LLAMA_7B, alone) > 1.3 * item_flops(LLAMA_7B, TRAINERS)


def test_the_weights_are_those_of_the_models_that_are_named() -> None:
    assert weight_bytes(LLAMA_7B, 32000, 1) / 1e9 == pytest.approx(6.6, abs=0.05)  # 6.74 with the head of the LM
    assert weight_bytes(SMOLLM2_135M, 49152, 1) / 1e6 == pytest.approx(134.5, abs=0.1)
    assert working_bytes_per_token(SHAPE, 4) == 4 * (2 * 8 + 3 * 16)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_plan_carries_its_load_and_one_engine_less_does_not(scenario: object) -> None:
    assert isinstance(scenario, type(SCENARIOS[0]))
    each = scenario.max_load * scenario.capacities[scenario.bottleneck]
    demand = scenario.traffic.items_per_second
    assert scenario.num_engines * each >= demand > (scenario.num_engines - 1) * each


def test_the_document_shows_what_the_command_prints() -> None:
    document = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
    assert prediction() in document.read_text(encoding="utf-8")
