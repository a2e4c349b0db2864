"""What may be served, what is refused with which words, and how exactly weights arrive."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from app.checkpoints.building import head_of
from app.checkpoints.files import UNTRAINED_MARK, weight_files
from app.checkpoints.loading import load_checkpoint
from app.checkpoints.placement import pick_dtype
from app.checkpoints.weights import hub_commit, weights_hash
from app.errors import ModelRefusedError
from tests.models import FAMILIES, make_model, make_tokenizer

WEIGHTS = "model.safetensors"


def edit_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    edit(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def no_head(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors.__delitem__("score.weight"))


def no_layer(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors.__delitem__("model.layers.1.mlp.up_proj.weight"))


def nan_weight(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors["model.norm.weight"][3:4].fill_(torch.nan))


def infinite_head(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors["score.weight"][0, :1].fill_(-torch.inf))


def wide_head(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors.update({"score.weight": torch.zeros(1, 48)}))


def quantized(directory: Path) -> None:
    edit_config(directory, quantization_config={"quant_method": "gptq", "bits": 4})


def two_labels(directory: Path) -> None:
    edit_config(directory, id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1})


def causal(directory: Path) -> None:
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(directory)


def only_bin(directory: Path) -> None:
    torch.save(load_file(directory / WEIGHTS), directory / "pytorch_model.bin")
    (directory / WEIGHTS).unlink()


def own_code(directory: Path) -> None:
    edit_config(directory, model_type="mine", auto_map={"AutoConfig": "mine.MyConfig"})
    (directory / "mine.py").write_text("raise RuntimeError('the code ran')\n")


def untrained(directory: Path) -> None:
    save_file(load_file(directory / WEIGHTS), directory / WEIGHTS, metadata={"format": "pt"} | UNTRAINED_MARK)


def cut_short(directory: Path) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[: len(content) // 2])


def no_tokenizer(directory: Path) -> None:
    for file in directory.glob("tokenizer*"):
        file.unlink()


def head_bias(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors.update({"score.bias": torch.ones(1)}))


def attention_biases(directory: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_weights(directory, lambda tensors: tensors.update({name: torch.ones(32)}))


def other_head(directory: Path) -> None:
    edit_config(directory, architectures=["LlamaForRewardModel"])
    edit_weights(directory, lambda tensors: tensors.update({"v_head.weight": tensors.pop("score.weight")}))


def language_models_head(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(320, 32)}))


REFUSALS: dict[Callable[[Path], object], tuple[str, str]] = {
    no_head: ("score.weight", "train the head"),
    no_layer: ("model.layers.1.mlp.up_proj.weight", "random"),
    nan_weight: ("NaN or infinite weights in model.norm.weight", "use an intact checkpoint"),
    infinite_head: ("NaN or infinite weights in score.weight", "use an intact checkpoint"),
    wide_head: ("score.weight of shape [1, 48] where its config asks for [1, 32]", "saved together"),
    quantized: ("saved quantized (gptq)", "use the original"),
    two_labels: ("num_labels 2", '{"map": {"log_odds": [1, 0]}}'),
    causal: ("LlamaForCausalLM, not a sequence classifier", "reward-service init --from-lm"),
    only_bin: ("pytorch_model.bin is a pickle, which is not opened", "reward-service convert"),
    own_code: ("cannot be loaded", "REWARD_TRUST_REMOTE_CODE=true"),
    untrained: ("untrained head", "train it"),
    head_bias: ("score.bias [1]", "does not explain"),
    attention_biases: ("model.layers.0.self_attn.q_proj.bias [32]", "does not explain"),
    other_head: ("LlamaForRewardModel and has v_head.weight [1, 32]", "the head of no known family"),
    lambda d: edit_config(d, std=3.513): ("std 3.513", "not the plain output"),
    cut_short: ("cannot be loaded", "check"),
    lambda d: (d / WEIGHTS).unlink(): ("cannot be loaded", "model.safetensors"),
    lambda d: (d / "config.json").unlink(): ("cannot be loaded", "config.json"),
    lambda d: (d / "config.json").write_text("{"): ("cannot be loaded", "config.json"),
    lambda d: edit_config(d, model_type="no-such-family"): ("cannot be loaded", "check"),
    no_tokenizer: ("cannot be loaded", "tokenizer"),
    lambda d: (d / "tokenizer.json").write_text("{}"): ("cannot be loaded", "tokenizer"),
}


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda spoil: spoil.__name__)
def test_a_checkpoint_that_must_not_be_served_is_refused_in_one_line(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    make_model(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelRefusedError) as refused:
        load_checkpoint(str(tmp_path), device="cpu")
    message = str(refused.value)
    reason, remedy = REFUSALS[spoil]
    assert message.startswith(str(tmp_path))
    assert reason in message
    assert remedy in message
    assert "\n" not in message
    assert len(message) < 700


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta:x", "xpu"])
def test_a_device_that_cannot_be_used_is_refused_with_the_remedy(safety_dir: Path, device: str) -> None:
    with pytest.raises(ModelRefusedError, match=r"cannot be used .*; set it to auto or cpu"):
        load_checkpoint(str(safety_dir), device=device)


def test_a_directory_is_never_looked_for_on_the_network(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match="cannot be loaded"):
        load_checkpoint("someone/no-such-model", device="cpu")
    with pytest.raises(ModelRefusedError, match="cannot be loaded"):
        load_checkpoint(str(tmp_path / "absent"), device="cpu")


def test_a_model_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    directory = make_model(tmp_path)
    checkpoint = load_checkpoint(str(directory), device="cpu")
    assert checkpoint.source == str(directory)
    assert checkpoint.device == torch.device("cpu")
    assert checkpoint.vocab_size == 320
    assert not checkpoint.net.training
    assert not any(parameter.requires_grad for parameter in checkpoint.net.parameters())
    saved = load_file(directory / WEIGHTS)
    loaded = checkpoint.net.state_dict()
    assert set(saved) == set(loaded)
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "bert", "deberta"])
def test_the_head_is_float32_with_the_files_own_values_whatever_the_trunk(tmp_path: Path, family: str) -> None:
    def fill_bias(net: Any) -> None:
        if (bias := head_of(net)[1].bias) is not None:
            torch.nn.init.constant_(bias, 0.1)

    directory = make_model(tmp_path, family, seed=5, edit=fill_bias)
    saved = load_file(directory / WEIGHTS)
    checkpoint = load_checkpoint(str(directory), device="cpu", dtype="bfloat16")
    name, head = head_of(checkpoint.net)
    assert name == ("score" if family in {"llama", "gpt_neox"} else "classifier")
    for key, parameter in head.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, saved[f"{name}.{key}"])
        assert not torch.equal(parameter, parameter.bfloat16().float())
    trunk = {parameter.dtype for parameter in checkpoint.net.base_model.parameters()}
    assert trunk == {torch.bfloat16}
    logits = checkpoint.net(torch.tensor([[1, 40, 41]])).logits
    assert logits.dtype == torch.float32


def test_dtype_auto_is_bfloat16_on_cuda_and_float32_elsewhere() -> None:
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("float16", torch.device("cpu")) == torch.float16


def test_a_sharded_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    whole = make_model(tmp_path / "whole", seed=6)
    net = AutoModelForSequenceClassification.from_pretrained(whole)
    net.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    make_tokenizer().save_pretrained(tmp_path / "shards")
    files = weight_files(str(tmp_path / "shards"), local_files_only=True)
    assert len(files) > 2
    loaded = load_checkpoint(str(tmp_path / "shards"), device="cpu", dtype="bfloat16")
    one = load_checkpoint(str(whole), device="cpu", dtype="bfloat16")
    assert all(torch.equal(a, b) for a, b in zip(loaded.net.parameters(), one.net.parameters(), strict=True))
    assert head_of(loaded.net)[1].weight.dtype == torch.float32


def test_nan_in_any_shard_is_refused(tmp_path: Path) -> None:
    net = AutoModelForSequenceClassification.from_pretrained(make_model(tmp_path / "whole"))
    net.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    make_tokenizer().save_pretrained(tmp_path / "shards")
    last = max((tmp_path / "shards").glob("*.safetensors"))
    tensors = load_file(last)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, last, metadata={"format": "pt"})
    with pytest.raises(ModelRefusedError, match="NaN or infinite"):
        load_checkpoint(str(tmp_path / "shards"), device="cpu")


def test_the_version_is_that_of_the_weights(tmp_path: Path) -> None:
    one, same, other = (make_model(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    versions = [load_checkpoint(str(directory), device="cpu").version for directory in (one, same, other)]
    assert versions[0] == versions[1] != versions[2]
    assert versions[0] == weights_hash([one / WEIGHTS])
    assert versions[0].startswith("sha256:")


@pytest.mark.parametrize(
    ("family", "positions", "tokenizer_limit", "expected"),
    [
        ("llama", 128, None, 128),
        ("llama", 512, 100, 100),
        ("bert", 64, None, 64),
        ("roberta", 66, None, 64),
    ],
)
def test_the_limit_is_what_positions_and_tokenizer_allow(
    tmp_path: Path, family: str, positions: int, tokenizer_limit: int | None, expected: int
) -> None:
    options: dict[str, Any] = {} if tokenizer_limit is None else {"model_max_length": tokenizer_limit}
    base = {"model_type": "roberta", "pad_token_id": 1} if family == "roberta" else {}
    config = FAMILIES["bert" if family == "roberta" else family] | base | {"max_position_embeddings": positions}
    directory = make_model(
        tmp_path, family if family in FAMILIES else "bert", tokenizer=make_tokenizer(**options), **config
    )
    checkpoint = load_checkpoint(str(directory), device="cpu")
    assert checkpoint.max_length == expected
    checkpoint.net(torch.full((1, expected), 7))


def test_the_file_of_a_plain_save_has_no_mark(tmp_path: Path) -> None:
    with safe_open(make_model(tmp_path) / WEIGHTS, framework="pt") as file:
        assert not UNTRAINED_MARK.items() & (file.metadata() or {}).items()


def test_a_config_of_another_family_is_still_a_sequence_classifier(tmp_path: Path) -> None:
    directory = make_model(tmp_path, "mistral")
    assert AutoConfig.from_pretrained(directory).architectures == ["MistralForSequenceClassification"]
    assert load_checkpoint(str(directory), device="cpu").max_length == 512


def test_a_language_models_head_beside_the_classifiers_is_no_reason_to_refuse(tmp_path: Path) -> None:
    directory = make_model(tmp_path)
    language_models_head(directory)
    load_checkpoint(str(directory), device="cpu")


def test_a_file_of_the_hubs_cache_tells_its_commit(tmp_path: Path) -> None:
    assert hub_commit(tmp_path / "models--org--name/snapshots/0a1b2c/model.safetensors") == "0a1b2c"
    assert hub_commit(tmp_path / "model.safetensors") is None


@pytest.mark.parametrize("other", ["training_args.bin", "optimizer.pt"])
def test_a_file_of_a_training_is_no_hint_at_weights_in_another_format(tmp_path: Path, other: str) -> None:
    directory = make_model(tmp_path)
    (directory / WEIGHTS).unlink()
    (directory / other).touch()
    with pytest.raises(ModelRefusedError, match="check that it holds"):
        load_checkpoint(str(directory), device="cpu")
