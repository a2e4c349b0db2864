"""What names, shapes and declarations get wrong is said before torch is imported, in the words of loading."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from app.checkpoints.early import HEAD, TRUNKS, check_declarations, check_files
from app.checkpoints.layers import IN_LAYER, LayerFaults, compare_layers
from app.checkpoints.loading import load_checkpoint
from app.checkpoints.parts import trunk_names
from app.errors import ModelRefusedError
from tests.models import make_language_model, make_model

RUN = """
import sys
from app.cli import main
code = main(sys.argv[1:])
print("torch" in sys.modules, "transformers" in sys.modules, code)
"""
WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("command", ["inspect", "serve"])
def test_a_declaration_that_cannot_be_read_is_refused_without_torch(command: str, tmp_path: Path) -> None:
    make_model(tmp_path)
    (tmp_path / "reward.json").write_text('{"positon": "last"}')
    arguments = (
        [str(tmp_path)] if command == "inspect" else ["--safety-model", str(tmp_path), "--helpfulness-model", ""]
    )
    done = run(command, *arguments)
    assert "reward.json has an unknown key positon" in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "False False 1", done.stderr


def with_tensors(directory: Path, tensors: dict[str, torch.Tensor | None], **config: Any) -> None:
    """Changes a checkpoint's tensors, or drops those that are None, and its config."""
    weights = load_file(directory / WEIGHTS) | tensors
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, directory / WEIGHTS, metadata={"format": "pt"})
    edit(directory / "config.json", **config)


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def classifier(tensors: dict[str, torch.Tensor | None], **config: Any) -> Callable[[Path], object]:
    return lambda directory: with_tensors(make_model(directory), tensors, **config)


def language_model(
    tensors: dict[str, torch.Tensor | None], declaration: dict[str, Any] | None = None, **config: Any
) -> Callable[[Path], object]:
    def make(directory: Path) -> None:
        with_tensors(make_language_model(directory), tensors, **config)
        if declaration is not None:
            (directory / "reward.json").write_text(json.dumps(declaration))

    return make


def adapter_without_base(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "gone"}')
    save_file({"a": torch.zeros(1)}, directory / "adapter_model.safetensors")


def without_a_shard(directory: Path) -> None:
    make_model(directory)
    names = dict.fromkeys(load_file(directory / WEIGHTS), "model-00001-of-00002.safetensors")
    (directory / WEIGHTS).unlink()
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))


REFUSED: dict[str, Callable[[Path], object]] = {
    "a bias that the classifier has not": classifier({"score.bias": torch.ones(1)}),
    "a head's tensors beside the classifier": classifier({"v_head.summary.weight": torch.ones(1, 32)}),
    "a classifier without its head": classifier({"score.weight": None}),
    "a head of another width": classifier({"score.weight": torch.ones(1, 16)}),
    "several labels": classifier({"score.weight": torch.ones(3, 32)}, id2label={"0": "a", "1": "b", "2": "c"}),
    "another family's rule": classifier({}, mean=0.5),
    "a quantized checkpoint": classifier({}, quantization_config={"quant_method": "gptq", "bits": 4}),
    "a language model": language_model({}),
    "a head of no family": language_model({"my_head.weight": torch.ones(1, 32)}),
    "a value head without its bias": language_model({"v_head.summary.weight": torch.ones(1, 32)}),
    "a declared head that is not there": language_model({}, {"head": "v_head"}),
    "a declared head of another width": language_model({"v.weight": torch.ones(1, 16)}, {"head": "v"}),
    "several outputs and no map": language_model({"v.weight": torch.ones(2, 32)}, {"head": "v"}),
    "a tensor beside the declared head": language_model(
        {"v.weight": torch.ones(1, 32), "w.weight": torch.ones(1, 32)}, {"head": "v"}
    ),
    "a gated mixture": language_model({"gating.layers.0.weight": torch.ones(4, 32)}),
    "a layer without one of its tensors": classifier({UP: None}),
    "a layer's tensor of another shape": classifier({UP: torch.ones(40, 32)}),
    "a tensor that one layer alone has": classifier({"model.layers.1.self_attn.q_proj.bias": torch.ones(32)}),
    "a layer more in the config": classifier({}, num_hidden_layers=4),
    "a layer less in the config": classifier({}, num_hidden_layers=2),
    "a layer without one of its tensors, under a declared head": language_model(
        {UP: None, "v.weight": torch.ones(1, 32)}, {"head": "v"}
    ),
    "an adapter without its base": adapter_without_base,
    "a missing shard": without_a_shard,
}


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning"
)  # what libraries say of a quantized checkpoint
@pytest.mark.parametrize("kind", REFUSED)
def test_what_names_and_shapes_tell_is_refused_early_in_the_words_of_loading(kind: str, tmp_path: Path) -> None:
    REFUSED[kind](tmp_path)
    with pytest.raises(ModelRefusedError) as early:
        check_files(str(tmp_path), check_declarations(str(tmp_path), None, None), trust_remote_code=False)
    with pytest.raises(ModelRefusedError) as late:
        load_checkpoint(str(tmp_path), device="cpu")
    assert str(early.value) == str(late.value)
    assert "\n" not in str(early.value)


@pytest.mark.parametrize(
    "kind",
    ["a bias that the classifier has not", "an adapter without its base", "a layer without one of its tensors"],
)
def test_such_a_start_imports_no_torch(kind: str, tmp_path: Path) -> None:
    REFUSED[kind](tmp_path)
    done = run("serve", "--safety-model", str(tmp_path), "--helpfulness-model", "")
    assert done.stdout.splitlines()[-1] == "False False 1", done.stderr
    assert done.stderr.startswith(f"reward-service: {tmp_path} ")


@pytest.mark.parametrize("model_type", TRUNKS)
def test_the_known_trunks_are_those_of_transformers(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **TINY)
    with torch.device("meta"):
        trunk = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        classifier = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    own, known = trunk_names(trunk), TRUNKS[model_type]
    assert (own.embedding, own.children, own.prefix) == (known.embedding, known.children, known.prefix)
    assert own.hidden_size == TINY["hidden_size"]
    assert {name for name in classifier.state_dict() if not name.startswith(known.prefix)} == {HEAD}


@pytest.mark.parametrize("model_type", TRUNKS)
def test_all_layers_of_the_known_trunks_have_the_same_tensors(model_type: str) -> None:
    with torch.device("meta"):
        trunk = AutoModel.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.for_model(model_type, **TINY | {"num_hidden_layers": 3})
        )
    assert any(map(IN_LAYER.match, trunk.state_dict()))
    assert compare_layers(trunk.state_dict(), 3) == LayerFaults()


def test_layers_that_do_not_tell_which_is_the_odd_one_are_left_to_loading() -> None:
    tensors = {"layers.0.a": torch.ones(2), "layers.1.a": torch.ones(3), "layers.0.b": torch.ones(1)}
    assert compare_layers(tensors, 2) == LayerFaults()
