"""What cannot be packed exactly is found at start and falls back; the CUDA backend's mask gives the same scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from app.engine.attention import IMPLEMENTATION, PackedRow
from app.engine.prefix_tree import PrefixTree
from app.engine.reward_model import RewardModel
from app.engine.self_test import choose_path
from app.engine.sequence import Sequence
from tests.engine.loaded import forests, load, token_ids
from tests.models import FAMILIES, GATED, SMALL, VOCAB_SIZE

ODD: dict[str, tuple[dict[str, Any], str]] = {
    "dynamic RoPE": (
        {
            "model_type": "llama",
            **GATED,
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        },
        "single",
    ),
    "state-space layers": (
        {
            "model_type": "jamba",
            **GATED,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "expert_layer_period": 2,
            "use_mamba_kernels": False,
        },
        "padded",
    ),
    "ALiBi": (
        {"model_type": "bloom", "vocab_size": VOCAB_SIZE, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "padded",
    ),
    "an attention of its own": (
        {"model_type": "gpt_neo", **SMALL, "attention_types": [[["global"], 3]], "intermediate_size": 64},
        "padded",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_a_model_that_cannot_be_packed_falls_back_and_keeps_the_oracles_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config, path = ODD[name]
    monkeypatch.setitem(FAMILIES, name, config)
    model = load(tmp_path, name)
    assert model.facts.path == path, model.facts.reason
    assert not model.facts.batch_invariant
    rng = np.random.default_rng(6)
    trunk = token_ids(rng, 50)
    longest = min(model.tokenization.max_length, 120)
    sequences = [
        Sequence.of((trunk[:n] + token_ids(rng, m))[:longest]) for n, m in ((50, 0), (50, 30), (20, 90), (0, 4))
    ]
    for scored, sequence in zip(model.score(sequences), sequences, strict=True):
        assert scored.score == pytest.approx(model.oracle(sequence), abs=1e-5 * max(1, abs(scored.score)))


def test_a_model_whose_attention_has_sinks_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "model_type": "gpt_oss",
        **GATED,
        "head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "sliding_window": 24,
    }
    monkeypatch.setitem(FAMILIES, "gpt_oss", config)
    model = load(tmp_path, "gpt_oss")
    assert model.facts.path == "padded"
    assert "s_aux" in model.facts.reason


def test_a_path_that_disagrees_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test itself: what is off by a hundredth is found out by the scores alone."""
    model = load(tmp_path, "mistral")
    assert model.facts.path == "packed"
    exact = RewardModel._last_states

    def shifted(self: RewardModel, *args: Any) -> torch.Tensor:
        return exact(self, *args) + 0.01

    monkeypatch.setattr(RewardModel, "_last_states", shifted)
    choose_path(model)
    assert model.facts.path == "packed"
    assert not model.facts.skips_last_layer
    assert "off by" in model.facts.reason


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # meant: compiled it needs a compiler
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences=forests(max_sequences=6, max_length=100))
def test_flex_attention_over_the_tree_equals_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, family: str, sequences: list[Sequence]
) -> None:
    """The CUDA backend, uncompiled on CPU: the same mask, windows and soft-caps."""
    model = load(tmp_path_factory.mktemp(family), family)
    tree = PrefixTree.of([sequence.key for sequence in sequences])
    row = PackedRow(tree, model.device, uses_flex=True)
    with torch.inference_mode(), model._attention(IMPLEMENTATION):
        states = model._trunk_states(row)
    last = torch.tensor([int(path[-1]) for path in tree.paths])
    for score, sequence in zip(model._head_scores(states[last]), sequences, strict=True):
        expected = model.oracle(sequence)
        assert score == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))
