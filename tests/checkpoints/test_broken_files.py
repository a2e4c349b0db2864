"""Files that were cut off, are something else, or do not belong together: one line that names the file or value, and the remedy."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.checkpoints.early import check_declarations, check_files
from app.checkpoints.loading import load_checkpoint
from app.errors import ModelRefusedError
from tests.checkpoints.test_adapters import WEIGHTS as ADAPTER_WEIGHTS
from tests.checkpoints.test_adapters import edit_adapter, make_adapter
from tests.checkpoints.test_loading import WEIGHTS, edit_config, edit_weights
from tests.gguf_files import make_gguf_model
from tests.models import make_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
UP = "model.layers.1.mlp.up_proj.weight"
Edit = Callable[[Path], object]


def writing(name: str, content: str | bytes) -> Edit:
    return lambda directory: (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(name: str, num_bytes: int) -> Edit:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:num_bytes])


def header(content: Any) -> Edit:
    text = json.dumps(content).encode()
    return writing(WEIGHTS, struct.pack("<Q", len(text)) + text + b"\0" * 4)


def without_tokenizer(directory: Path) -> None:
    for file in directory.glob("*token*"):
        file.unlink()


def twice(directory: Path) -> None:
    save_file({"score.weight": torch.ones(1, 32)}, directory / "value_head.safetensors")


def short_floats(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors.update({UP: tensors[UP].to(torch.float8_e4m3fn)}))


INDEX = f"{WEIGHTS}.index.json"
REFUSED: dict[str, tuple[Edit, str]] = {
    "an empty file": (
        writing(WEIGHTS, b""),
        r"/model.safetensors is not a complete .* has 0 bytes .*; copy the file again",
    ),
    "half a header": (
        cut(WEIGHTS, 200),
        r"/model.safetensors is not a complete .* has 200 bytes .*; copy the file again",
    ),
    "half the weights": (
        cut(WEIGHTS, 100_000),
        r"/model.safetensors is incomplete: it has 100,000 bytes, and .*; copy",
    ),
    "a header without shapes": (header({"a": {"dtype": "F32", "data_offsets": [0, 4]}}), "missing key 'shape'.*; copy"),
    "a header of text": (header({"a": "b"}), "its header is invalid .*; copy the file again"),
    "offsets that do not fit": (
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}),
        "/model.safetensors is not a safetensors file: .*; copy the file again",
    ),
    "a pointer of Git LFS for the weights": (
        writing(WEIGHTS, POINTER),
        "model.safetensors is a Git LFS pointer.*git lfs pull",
    ),
    "a pointer of Git LFS for the tokenizer": (
        writing("tokenizer.json", POINTER),
        "tokenizer.json is a Git LFS pointer.*git lfs pull",
    ),
    "an index that is no JSON": (writing(INDEX, "{"), f"/{INDEX} is not valid JSON: .*; copy the file again"),
    "an index of nothing": (writing(INDEX, "{}"), f"/{INDEX} has no weight_map .*; copy the file again"),
    "a config that is no JSON": (
        writing("config.json", "{"),
        "/config.json is not valid JSON: .*; copy the file again",
    ),
    "a config that is nested too deeply": (
        writing("config.json", "[" * 10_000),
        "/config.json is not valid JSON: recursion limit exceeded.*; copy the file again",
    ),
    "a tokenizer that is nested too deeply": (
        writing("tokenizer_config.json", "[" * 10_000),
        "tokenizer_config.json is not valid JSON: copy it again",
    ),
    "a header that is nested too deeply": (
        writing(WEIGHTS, struct.pack("<Q", 10_000) + b"[" * 10_000),
        "its header is invalid .recursion limit exceeded.*; copy the file again",
    ),
    "a declaration that is nested too deeply": (
        writing("reward.json", "[" * 10_000),
        "reward.json is not valid JSON .recursion limit exceeded.*; correct it",
    ),
    "a config that is a list": (
        writing("config.json", "[]"),
        "/config.json is not a JSON object.*; copy the file again",
    ),
    "a config of far too many layers": (
        lambda directory: edit_config(directory, num_hidden_layers=10**6),
        r"has num_hidden_layers 1000000 in its config, and \d+ tensors; use a config and weights that were saved together",
    ),
    "no config": (lambda directory: (directory / "config.json").unlink(), "no file named config.json"),
    "a type of RoPE that is unknown": (
        lambda directory: edit_config(directory, rope_parameters={"rope_type": "nope", "rope_theta": 1.0}),
        "unknown or missing key 'nope'",
    ),
    "a tokenizer that is no JSON": (writing("tokenizer.json", "{"), "tokenizer.json is not valid JSON: copy it again"),
    "no tokenizer": (without_tokenizer, "it has no tokenizer: save the one that it was trained with there"),
    "a chat template that is no Jinja": (
        writing("chat_template.jinja", "{{ messages }"),
        "the chat template is not valid Jinja .*; correct it, or declare another as text.template",
    ),
    "a declaration that is not UTF-8": (
        writing("reward.json", b"\xff"),
        "reward.json is not UTF-8 .*; save it as UTF-8",
    ),
    "a declared head of no tensors": (writing("reward.json", '{"head": []}'), "name the tensors of the head"),
    "one tensor in two files": (twice, "two files hold a tensor score.weight: remove it from value_head.safetensors"),
    "weights in 8 bits": (short_floats, f"{UP} in F8_E4M3, which is not supported; give the original"),
}


def refusal(directory: Path) -> str:
    with pytest.raises(ModelRefusedError) as refused:
        load_checkpoint(str(directory), device="cpu")
    return str(refused.value)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_broken_file_is_named_with_the_remedy(kind: str, tmp_path: Path) -> None:
    edit, message = REFUSED[kind]
    edit(make_model(tmp_path))
    late = refusal(tmp_path)
    assert re.search(message, late)
    assert "\n" not in late
    try:
        check_files(str(tmp_path), check_declarations(str(tmp_path), None, None), trust_remote_code=False)
    except ModelRefusedError as early:
        assert str(early) == late  # noqa: PT017 - it need not be refused early


def test_an_architecture_may_be_one_name(tmp_path: Path) -> None:
    edit_config(make_model(tmp_path), architectures="LlamaForSequenceClassification")
    check_files(str(tmp_path), [], trust_remote_code=False)
    assert load_checkpoint(str(tmp_path), device="cpu").is_classifier


def other_base(adapter: Path, base: Path) -> None:
    make_model(base, hidden_size=64)
    assert adapter.is_dir()


def edited(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path, Path], None]:
    def change(adapter: Path, _: Path) -> None:
        tensors = load_file(adapter / ADAPTER_WEIGHTS)
        edit(tensors)
        save_file(tensors, adapter / ADAPTER_WEIGHTS)

    return change


ADAPTERS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "of another base": (other_base, "cannot be merged into its base .*size mismatch.*the base that it was trained on"),
    "of other layers": (
        lambda adapter, _: edit_adapter(adapter, target_modules=["nope"]),
        "cannot be merged into its base .*No modules were targeted.*the base that it was trained on",
    ),
    "with a tensor of no place": (
        edited(lambda tensors: tensors.update({"base_model.model.model.layers.0.nope.weight": torch.ones(2)})),
        "has tensors that its base does not use .*nope.weight.*; use the base",
    ),
    "of an unknown type": (
        lambda adapter, _: edit_adapter(adapter, peft_type="NOPE"),
        "adapter_config.json that peft cannot read .*NOPE.*; save the adapter again, or update peft",
    ),
    "without weights in its file": (
        lambda adapter, _: (adapter / ADAPTER_WEIGHTS).write_bytes(b""),
        f"/{ADAPTER_WEIGHTS} is not a complete safetensors file: it has 0 bytes .*; copy the file again",
    ),
    "of a base that was cut off": (
        lambda _, base: cut(WEIGHTS, 100_000)(base),
        "/base/model.safetensors is incomplete: it has 100,000 bytes.*; copy the file again",
    ),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_that_does_not_fit_is_refused_with_the_remedy(kind: str, tmp_path: Path) -> None:
    edit, message = ADAPTERS[kind]
    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    edit(adapter, base)
    with pytest.raises(ModelRefusedError, match=message) as refused:
        load_checkpoint(str(adapter), device="cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"anything at all"])
def test_a_file_that_is_no_gguf_is_named(content: bytes, tmp_path: Path) -> None:
    make_gguf_model(tmp_path)
    writing("tiny.Q4_1.gguf", content)(tmp_path)
    writing("reward.json", '{"head": {"token": 5}}')(tmp_path)
    assert "/tiny.Q4_1.gguf is not a complete GGUF file" in refusal(tmp_path)
