"""Every decoder that transformers can classify with, made tiny: scores equal the reference forward's past every limit.

Windows and chunks are 24 tokens, texts up to 150. Families that are left out are listed with the reason; a family that a newer
transformers adds is in the sweep without a change here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from app.engine import self_test
from app.engine.batch import Batch
from app.engine.reward_model import RewardModel
from app.engine.sequence import TokenSequence
from tests.engine.loaded import load, token_ids
from tests.models import FAMILIES, VOCAB_SIZE

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "sliding_window": 24,
    "use_sliding_window": True,
    "max_window_layers": 2,
    "attention_chunk_size": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 512,
    "n_inner": 48,
    "n_ctx": 512,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "ffn_hidden_size": 48,
}


MLA = {"num_key_value_heads": 4, "head_dim": 8}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "axk1": MLA,
    "axk2": {**MLA, "layer_types": None},
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "use_mamba_kernels": False},
    "minicpm3": MLA,
    "mistral4": MLA,
}
NOT_IN_THE_SWEEP = {
    "encoder-decoders": {"bart", "bigbird_pegasus", "mbart", "mvp", "plbart"},
    "encoders that may also decode": {
        *{"bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta"},
        *{"roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod"},
    },
    "no sequence length": {"reformer", "xlnet"},
    "a text model in a larger one": {"gemma3"},
    "sizes that do not shrink to the common ones": {
        "cohere_compass_text",
        "ctrl",
        "gpt_neo",
        "gptj",
        "qwen3_5",
        "zamba",
        "zamba2",
    },
}
"""Families that are not packed for what they are; the last row is covered by the tests of paths, as far as it is packed."""


def decoder_families() -> list[str]:
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    return sorted(causal.difference(*NOT_IN_THE_SWEEP.values()))


def tiny_config(family: str) -> dict[str, Any]:
    """The common sizes, as far as the family's config has such fields, and the family's own."""
    defaults = CONFIG_MAPPING[family]()
    sizes = {name: value for name, value in SIZES.items() if hasattr(defaults, name)} | OWN_SIZES.get(family, {})
    return {"model_type": family} | {name: value for name, value in sizes.items() if value is not None}


def load_tiny(directory: Path, family: str, monkeypatch: pytest.MonkeyPatch, **config: Any) -> RewardModel:
    monkeypatch.setitem(FAMILIES, family, tiny_config(family) | config)
    return load(directory, family)


def check_scores(model: RewardModel, num_tokens: int) -> None:
    """A text of so many tokens, one that shares most of it, and a short one, scored together."""
    rng = np.random.default_rng(3)
    prompt = token_ids(rng, num_tokens - 50)
    texts = ([*prompt, *token_ids(rng, 50)], [*prompt, *token_ids(rng, 9)], prompt[:30])
    sequences = [TokenSequence.of(text) for text in texts]
    for scored, sequence in zip(model.score(Batch.of(sequences)), sequences, strict=True):
        expected = model.reference_score(sequence)
        assert scored.score == pytest.approx(expected, abs=2e-5 * max(1, abs(expected))), model.plan


@pytest.mark.parametrize("family", decoder_families())
def test_scores_are_the_reference_forwards_past_every_limit(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_scores(load_tiny(tmp_path, family, monkeypatch), 150)


@pytest.mark.parametrize("affordable", [True, False])
@pytest.mark.parametrize("family", ["qwen2_moe", "phimoe", "mistral", "gemma2", "qwen2"])
def test_a_window_longer_than_the_plain_test_is_found(
    family: str, affordable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a longer test where that is affordable, else by what the layers pass to the attention function."""
    if not affordable:
        monkeypatch.setattr(self_test, "AFFORDABLE_FLOPS", {"cpu": 0})
    model = load_tiny(tmp_path, family, monkeypatch, sliding_window=200)
    assert model.plan.path == ("padded" if family in {"qwen2_moe", "phimoe"} else "packed"), model.plan.reason
    check_scores(model, 400)


def test_a_window_that_no_text_reaches_is_no_reason_to_pad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_tiny(tmp_path, "qwen2_moe", monkeypatch, sliding_window=4096)
    assert model.plan.path == "packed", model.plan.reason
