"""What cannot be packed exactly is found at start and falls back; the CUDA backend's mask gives the same scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from torch import Tensor

from app.engine import packed
from app.engine.attention import cpu
from app.engine.attention.cuda import FlexBackend
from app.engine.batch import Batch
from app.engine.packed import BACKENDS
from app.engine.reward_model import ExecutionPlan, RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
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
    assert model.plan.path == path, model.plan.reason
    assert not model.plan.batch_invariant
    rng = np.random.default_rng(6)
    trunk = token_ids(rng, 50)
    longest = min(model.tokenization.max_length, 120)
    sequences = [
        TokenSequence.of((trunk[:n] + token_ids(rng, m))[:longest]) for n, m in ((50, 0), (50, 30), (20, 90), (0, 4))
    ]
    for scored, sequence in zip(model.score(Batch.of(sequences)), sequences, strict=True):
        assert scored.score == pytest.approx(model.reference_score(sequence), abs=1e-5 * max(1, abs(scored.score)))


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
    assert model.plan.path == "padded"
    assert "s_aux" in model.plan.reason


def test_a_path_that_disagrees_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test itself: what is off by a hundredth is found out by the scores alone."""
    model = load(tmp_path, "mistral")
    assert model.plan.path == "packed"
    exact = packed.last_states
    monkeypatch.setattr(packed, "last_states", lambda *args: exact(*args) + 0.01)
    select_plan(model)
    assert model.plan.path == "packed"
    assert not model.plan.skips_last_layer
    assert "off by" in model.plan.reason


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma2"])
def on_flex(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    model = load(tmp_path_factory.mktemp(request.param), request.param)
    model.plan = ExecutionPlan("packed", "forced", backend="flex")
    return model


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # meant: compiled it needs a compiler
@settings(max_examples=4, deadline=None)
@given(sequences=forests(max_sequences=6, max_length=100))
def test_flex_attention_over_the_tree_equals_the_oracle(on_flex: RewardModel, sequences: list[TokenSequence]) -> None:
    """The CUDA backend, uncompiled on CPU: the same mask, windows and soft-caps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "flex", FlexBackend(compiled=False))
        scores = on_flex.score(Batch.of(sequences))
    for scored, sequence in zip(scores, sequences, strict=True):
        expected = on_flex.reference_score(sequence)
        assert scored.score == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))


@pytest.mark.parametrize("num_queries", [16, 32, 48])
def test_a_kernel_whose_bits_depend_on_the_number_of_queries_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_queries: int
) -> None:
    """Attention computes only the wanted queries of a block: it is the same to the bit only where that changes none."""
    exact = cpu.masked_attention

    def other_bits(query: Tensor, key: Tensor, *others: Any) -> Tensor:
        attended = exact(query, key, *others)
        return attended * (1 + 2**-22) if (query.shape[2], key.shape[2]) == (num_queries, 128) else attended

    monkeypatch.setattr(cpu, "masked_attention", other_bits)
    assert not load(tmp_path).plan.batch_invariant
