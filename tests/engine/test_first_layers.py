"""Tests for equal bits end behind the first layers of each kind, and find there what a whole forward would show."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.engine.batch import Batch
from app.engine.first_layers import first_layers, states_for_bits
from app.engine.self_test import batch_of_states
from app.engine.sequence import TokenSequence
from app.engine.thread_counts import equal_thread_counts
from tests.engine.loaded import load, token_ids

OTHER_BITS = 1 + 2**-22


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", 1),
        ("gpt_neox", 1),
        ("gemma2", 2),  # every second layer has a sliding window
        ("bert", 0),  # padded
    ],
)
def test_the_first_layers_include_one_of_each_kind(tmp_path: Path, family: str, expected: int) -> None:
    assert first_layers(load(tmp_path, family)) == expected


def test_a_kind_that_only_the_last_layer_is_of_needs_the_whole_forward(tmp_path: Path) -> None:
    model = load(tmp_path)
    model.layers[-1].extra = nn.Linear(32, 8)
    assert first_layers(model) == 0


def test_a_matrix_outside_the_layers_needs_the_whole_forward(tmp_path: Path) -> None:
    model = load(tmp_path)
    model.trunk.projection = nn.Linear(32, 32)
    assert first_layers(model) == 0


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_states_are_those_that_the_layer_returns_for_each_sequence_alone(tmp_path: Path, num_layers: int) -> None:
    model = load(tmp_path)
    rng = np.random.default_rng(0)
    prompt = token_ids(rng, 40)
    sequences = [TokenSequence.of([*prompt, *token_ids(rng, n)]) for n in (3, 70)]
    states = states_for_bits(model, Batch.of(sequences, [True, True]), num_layers)
    (scored, _) = model.score(Batch.of(sequences))  # nothing is left that ends a forward
    assert scored.score == pytest.approx(model.reference_score(sequences[0]), abs=1e-5)
    model.use_attention(model.own_attention)
    expected = [
        model.trunk(torch.from_numpy(each.token_ids)[None], output_hidden_states=True).hidden_states[num_layers][0]
        for each in sequences
    ]
    assert torch.allclose(states, torch.cat(expected), atol=1e-5)


def test_no_layer_behind_the_first_of_each_kind_is_computed(tmp_path: Path) -> None:
    model, seen = load(tmp_path), list[int]()
    for i, layer in enumerate(model.layers):
        layer.register_forward_pre_hook(lambda *_, i=i: seen.append(i))
    equal_thread_counts(model, 2)
    assert set(seen) == {0}


@pytest.mark.parametrize("shape", [(32, 32), (16, 32), (48, 32), (32, 48)])
def test_a_product_whose_bits_depend_on_the_number_of_rows_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    """As MKL's are without its reproducible mode: from about 193 rows on."""
    exact = nn.functional.linear

    def other_bits(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = exact(states, weight, bias)
        return out * OTHER_BITS if weight.shape == shape and states.shape[-2] > 192 else out

    monkeypatch.setattr(nn.functional, "linear", other_bits)
    model = load(tmp_path)
    assert model.plan.path == "packed"
    assert not model.plan.batch_invariant


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_product_whose_bits_depend_on_the_number_of_threads_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    exact = nn.functional.linear

    def other_bits(*args: Any) -> Tensor:
        out = exact(*args)
        return out * OTHER_BITS if torch.get_num_threads() == num_threads else out

    torch.set_num_threads(2)
    monkeypatch.setattr(nn.functional, "linear", other_bits)
    model = load(tmp_path)
    assert model.plan.path == "packed"
    assert not model.plan.batch_invariant
    assert equal_thread_counts(model, 2) == (2,)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_of_either_kind_that_gives_other_bits_on_one_thread_is_found(tmp_path: Path, layer: int) -> None:
    model = load(tmp_path, "gemma2")

    def other_bits(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return out * OTHER_BITS if torch.get_num_threads() == 1 else out

    model.layers[layer].mlp.down_proj.register_forward_hook(other_bits)  # type: ignore[union-attr]
    assert equal_thread_counts(model, 4) == (4, 3, 2)
    assert equal_thread_counts(model, 2) == (2,)


def test_a_model_too_large_for_the_whole_comparison_is_compared_in_its_first_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tmp_path)
    num_tokens = sum(batch_of_states(model).part(part).num_tokens for part in PARTS)
    model.flops_per_token  # noqa: B018 - kept before the limit is set
    monkeypatch.setattr("app.engine.thread_counts.AFFORDABLE_FLOPS", {"cpu": num_tokens * model.flops_per_token / 2})
    assert equal_thread_counts(model, 2) == (2, 1)
    model.trunk.projection = nn.Linear(32, 32)
    assert equal_thread_counts(model, 2) == (2,)


PARTS: list[list[int]] = [[*range(8)], [*range(6)], [1, 7], [2, 3, 5], [0]]
