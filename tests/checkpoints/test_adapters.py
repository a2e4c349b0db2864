"""Adapters load merged on their base, and are refused where either of the two would leave weights to chance."""

import json
import os
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from app.checkpoints.building import head_of
from app.checkpoints.loading import load_checkpoint
from app.checkpoints.new_head import init_reward_model
from app.engine.batch import Batch
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError
from tests.engine.loaded import load_from
from tests.models import make_model, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers
WEIGHTS = "adapter_model.safetensors"
SEQUENCES = [TokenSequence.of([*range(5, n)]) for n in (9, 40, 90)]


def make_adapter(directory: Path, base: Path, named: str | None = None, *, seed: int = 3, **options: Any) -> Path:
    """Saves a LoRA adapter of `base` with weights that matter, as peft does after a training; returns `directory`."""
    torch.manual_seed(seed)
    net = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "up_proj"],
        "task_type": "SEQ_CLS",
    } | options
    wrapped = peft.get_peft_model(net, peft.LoraConfig(**config))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.normal_(0, 0.2)
    wrapped.save_pretrained(str(directory))
    edit_adapter(directory, base_model_name_or_path=os.fspath(base) if named is None else named)
    return directory


def edit_adapter(directory: Path, **changes: object) -> None:
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pefts_own_scores(base: Path, adapter: Path) -> list[float]:
    net = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    wrapped = peft.PeftModel.from_pretrained(net, adapter).eval()
    with torch.inference_mode():
        return [float(wrapped(torch.from_numpy(sequence.token_ids)[None]).logits[0, 0]) for sequence in SEQUENCES]


def close(expected: list[float]) -> Any:
    return pytest.approx(expected, abs=1e-5 * max(1, *map(abs, expected)), rel=0)


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    """A language model, which has no head for scores, and a config that says nothing of labels."""
    make_model(tmp_path / "lm")
    AutoModelForCausalLM.from_pretrained(tmp_path / "lm").save_pretrained(tmp_path / "lm")
    file = tmp_path / "lm" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in config.items() if name not in {"id2label", "label2id"}}))
    return tmp_path / "lm"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "alpha_pattern": {"up_proj": 3}, "bias": "lora_only"},
        {"use_dora": True, "target_modules": "all-linear"},
        {"modules_to_save": None, "task_type": None},
    ],
    ids=["plain", "rank-stabilized", "dora", "the base's head"],
)
def test_an_adapter_scores_as_peft_has_it(tmp_path: Path, options: dict[str, Any]) -> None:
    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, **options)
    model = load_from(adapter)
    expected = pefts_own_scores(base, adapter)
    assert [scored.score for scored in model.score(Batch.of(SEQUENCES))] == close(expected)
    plain = load_from(base)
    assert expected != close([plain.reference_score(sequence) for sequence in SEQUENCES])
    assert model.plan.path == "packed"
    assert model.plan.batch_invariant
    assert not any("lora" in name for name, _ in model.net.named_modules())


def test_an_adapter_brings_a_language_model_the_head_that_was_trained_with_it(tmp_path: Path, lm: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", lm, modules_to_save=["score"])
    model = load_from(adapter)
    assert [scored.score for scored in model.score(Batch.of(SEQUENCES))] == close(pefts_own_scores(lm, adapter))
    saved = load_file(adapter / WEIGHTS)
    assert torch.equal(head_of(model.net)[1].weight, saved["base_model.model.score.weight"])


def test_an_adapter_trained_on_a_new_head_of_ours_is_served_though_its_base_is_not(tmp_path: Path, lm: Path) -> None:
    init_reward_model(lm, tmp_path / "new")
    adapter = make_adapter(tmp_path / "adapter", tmp_path / "new")
    assert [s.score for s in load_from(adapter).score(Batch.of(SEQUENCES))] == close(
        pefts_own_scores(tmp_path / "new", adapter)
    )
    without_head = make_adapter(tmp_path / "headless", tmp_path / "new", task_type=None)
    with pytest.raises(ModelRefusedError, match="untrained head"):
        load_checkpoint(str(without_head), device="cpu")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_merging_is_in_float32_and_rounding_comes_after_it(tmp_path: Path, dtype: str) -> None:
    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    net = AutoModelForSequenceClassification.from_pretrained(base)
    merged: Any = peft.PeftModel.from_pretrained(net, adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    make_tokenizer().save_pretrained(tmp_path / "merged")
    ours, theirs = (load_from(directory, dtype=dtype) for directory in (adapter, tmp_path / "merged"))
    assert [s.score for s in ours.score(Batch.of(SEQUENCES))] == [s.score for s in theirs.score(Batch.of(SEQUENCES))]
    assert head_of(ours.net)[1].weight.dtype == torch.float32


@pytest.mark.parametrize("named", ["../base", "someone/base", "base", "/gone/to/another/machine/base"])
def test_the_base_may_stand_beside_its_adapter(tmp_path: Path, named: str) -> None:
    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, named)
    assert [s.score for s in load_from(adapter).score(Batch.of(SEQUENCES))] == close(pefts_own_scores(base, adapter))


def test_a_base_that_is_named_by_a_hub_id_is_not_fetched_unasked(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", make_model(tmp_path / "base"), "someone/no-such-base")
    with pytest.raises(ModelRefusedError) as refused:
        load_checkpoint(str(adapter), device="cpu")
    assert f"put the base at {tmp_path / 'no-such-base'}" in str(refused.value)
    assert "hf: and its hub id" in str(refused.value)


def test_the_tokenizer_and_its_pad_token_are_the_adapters_where_it_has_them(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", pad_token_id=None)
    adapter = make_adapter(tmp_path / "adapter", base)
    assert load_checkpoint(str(adapter), device="cpu").net.config.pad_token_id == 0
    make_tokenizer(pad_token="</s>").save_pretrained(adapter)
    checkpoint = load_checkpoint(str(adapter), device="cpu")
    assert checkpoint.tokenizer.pad_token == "</s>"
    assert checkpoint.net.config.pad_token_id == 2


def test_base_and_adapter_both_make_the_version(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    one, same, other = (make_adapter(tmp_path / name, base, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    versions = [load_checkpoint(str(directory), device="cpu").version for directory in (one, same, other)]
    make_model(base, seed=8)
    versions.append(load_checkpoint(str(one), device="cpu").version)
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


def test_files_that_change_after_loading_change_nothing_that_is_loaded(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    model = load_from(make_adapter(tmp_path / "adapter", base))
    before = [scored.score for scored in model.score(Batch.of(SEQUENCES))]
    for file in (base / "model.safetensors", tmp_path / "adapter" / WEIGHTS):
        os.truncate(file, 0)
    assert [scored.score for scored in model.score(Batch.of(SEQUENCES))] == before


def spoil_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(directory / WEIGHTS)
    for name, value in changes.items():
        full = next(key for key in tensors if name in key)
        tensors.pop(full)
        if value is not None:
            tensors[full] = value
    save_file(tensors, directory / WEIGHTS)


def test_an_adapter_that_would_leave_weights_to_chance_is_refused(tmp_path: Path, lm: Path) -> None:
    base = make_model(tmp_path / "base")
    headless = make_adapter(tmp_path / "headless", lm, task_type=None)
    lacking = make_adapter(tmp_path / "lacking", base)
    spoil_weights(lacking, lora_B=None)
    broken = make_adapter(tmp_path / "broken", base)
    spoil_weights(broken, lora_B=torch.full((48, 4), torch.nan))
    wide = make_adapter(tmp_path / "wide", lm, modules_to_save=["score"])
    spoil_weights(wide, **{"score.weight": torch.zeros(2, 32)})
    for directory, words in (
        (headless, "LlamaForCausalLM, not a sequence classifier"),
        (lacking, "its file lacks base_model.*lora_B"),
        (broken, "NaN"),
        (wide, "num_labels 2"),
    ):
        with pytest.raises(ModelRefusedError, match=words) as refused:
            load_checkpoint(str(directory), device="cpu")
        assert "\n" not in str(refused.value)


def test_prompt_tuning_cannot_be_merged_and_is_refused(tmp_path: Path) -> None:
    net = AutoModelForSequenceClassification.from_pretrained(make_model(tmp_path / "base"))
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    peft.get_peft_model(net, config).save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(ModelRefusedError, match="PROMPT_TUNING adapter, which cannot be merged"):
        load_checkpoint(str(tmp_path / "prompt"), device="cpu")


def test_a_whole_model_beside_an_adapters_config_is_the_model(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    score = load_from(base).reference_score(SEQUENCES[0])
    make_adapter(base, base)
    assert load_from(base).reference_score(SEQUENCES[0]) == score
