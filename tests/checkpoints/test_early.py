"""What names, shapes and declarations get wrong is said before torch is imported, in the words of loading."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.checkpoints.early import check_declarations, check_files
from app.checkpoints.layers import LayerFaults, compare_layers
from app.checkpoints.loading import load_checkpoint
from app.checkpoints.trunks import read_table
from app.errors import ModelRefusedError
from tests.checkpoints.encoder_decoders import SEQ2SEQ, make_encoder_decoder
from tests.checkpoints.test_adapters import make_adapter
from tests.engine.test_families import tiny_config
from tests.gguf_files import make_gguf_model
from tests.models import FAMILIES, make_language_model, make_model

RUN = """
import sys
from app.cli import main
code = main(sys.argv[1:])
print("torch" in sys.modules, "transformers" in sys.modules, code)
"""
Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"


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


def adapter_without_weights(directory: Path) -> None:
    adapter_without_base(directory)
    (directory / "adapter_model.safetensors").unlink()


def adapter(make_base: Callable[[Path], Path], **config: Any) -> Callable[[Path], object]:
    """An adapter without a head; `config` is changed in the base's once the adapter is made."""

    def make(directory: Path) -> None:
        base = make_base(directory.parent / "base")
        make_adapter(directory, base, task_type=None)
        edit(base / "config.json", **config)

    return make


def adapter_with_value_head(directory: Path) -> None:
    adapter(make_language_model)(directory)
    head = {"v_head.summary.weight": torch.ones(2, 32), "v_head.summary.bias": torch.ones(2)}
    save_file(head, directory / "value_head.safetensors", metadata={"format": "pt"})


def gguf_of_a_classifier(directory: Path) -> None:
    make_gguf_model(directory)
    edit(directory / "config.json", architectures=["LlamaForSequenceClassification"], num_labels=1)


def without_a_shard(directory: Path) -> None:
    make_model(directory)
    names = dict.fromkeys(load_file(directory / WEIGHTS), "model-00001-of-00002.safetensors")
    (directory / WEIGHTS).unlink()
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))


def check_early(directory: Path) -> None:
    check_files(str(directory), check_declarations(str(directory), None, None), trust_remote_code=False)


def check_refused_alike(directory: Path) -> None:
    """Before torch is imported, and at loading, in the same line."""
    with pytest.raises(ModelRefusedError) as early:
        check_early(directory)
    with pytest.raises(ModelRefusedError) as late:
        load_checkpoint(str(directory), device="cpu")
    assert str(early.value) == str(late.value)
    assert "\n" not in str(early.value)


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
    "an adapter without its weights": adapter_without_weights,
    "an adapter without a head": adapter(make_language_model),
    "an adapter of a base with several labels": adapter(make_model, id2label={"0": "a", "1": "b", "2": "c"}),
    "an adapter of a quantized base": adapter(make_model, quantization_config={"quant_method": "gptq", "bits": 4}),
    "an adapter with a value head of several outputs": adapter_with_value_head,
    "a language model in a GGUF file": make_gguf_model,
    "a classifier's config beside a GGUF file": gguf_of_a_classifier,
    "a missing shard": without_a_shard,
}


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning"
)  # what libraries say of a quantized checkpoint
@pytest.mark.parametrize("kind", REFUSED)
def test_what_names_and_shapes_tell_is_refused_early_in_the_words_of_loading(kind: str, tmp_path: Path) -> None:
    REFUSED[kind](tmp_path / "model")
    check_refused_alike(tmp_path / "model")


@pytest.mark.parametrize(
    "kind",
    ["a bias that the classifier has not", "an adapter without its base", "a layer without one of its tensors"],
)
def test_such_a_start_imports_no_torch(kind: str, tmp_path: Path) -> None:
    REFUSED[kind](tmp_path)
    done = run("serve", "--safety-model", str(tmp_path), "--helpfulness-model", "")
    assert done.stdout.splitlines()[-1] == "False False 1", done.stderr
    assert done.stderr.startswith(f"reward-service: {tmp_path} ")


def without_head(tensors: Tensors, output: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{output}.")}


def with_tensor(tensors: Tensors, _: str) -> Tensors:
    return tensors | {"my_extra.weight": torch.ones(1, 32)}


def renamed_head(tensors: Tensors, output: str) -> Tensors:
    return {name.replace(f"{output}.", "other_name."): tensor for name, tensor in tensors.items()}


def five_labels(tensors: Tensors, output: str) -> Tensors:
    return tensors | {f"{output}.weight": torch.ones(5, *tensors[f"{output}.weight"].shape[1:])}


BROKEN: dict[str, tuple[Callable[[Tensors, str], Tensors], dict[str, Any]]] = {
    "a head that is lost": (without_head, {}),
    "a tensor more": (with_tensor, {}),
    "a renamed head": (renamed_head, {}),
    "five labels": (five_labels, {"id2label": {str(i): f"LABEL_{i}" for i in range(5)}}),
    "another class": (lambda tensors, _: tensors, {"architectures": ["XWithBonusForSequenceClassification"]}),
    "a language model's class": (without_head, {"architectures": ["XForCausalLM"]}),
}
TYPES = [
    "bloom",
    "deepseek_v3",
    "falcon",
    "qwen3_moe",
    "bert",
    "roberta",
    "deberta-v2",
    "electra",
    "modernbert",
    "t5",
    "bart",
]


@pytest.mark.parametrize("model_type", TYPES)
def test_a_classifier_of_any_type_is_refused_early_in_the_words_of_loading(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model_type in SEQ2SEQ:
        make_encoder_decoder(tmp_path / "good", model_type)
    else:
        monkeypatch.setitem(FAMILIES, model_type, tiny_config(model_type))
        make_model(tmp_path / "good", model_type)
    output = read_table()[model_type]["output"]
    tensors = load_file(tmp_path / "good" / WEIGHTS)
    check_early(tmp_path / "good")
    for kind, (change, config) in BROKEN.items():
        broken = shutil.copytree(tmp_path / "good", tmp_path / kind)
        save_file(change(tensors, output), broken / WEIGHTS, metadata={"format": "pt"})
        edit(broken / "config.json", **config)
        check_refused_alike(broken)


def test_layers_that_do_not_tell_which_is_the_odd_one_are_left_to_loading() -> None:
    tensors = {"layers.0.a": torch.ones(2), "layers.1.a": torch.ones(3), "layers.0.b": torch.ones(1)}
    assert compare_layers(tensors, 2) == LayerFaults()
