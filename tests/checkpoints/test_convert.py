"""`.bin` weights become safetensors with the same scores, and nothing that they hold is run."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from app.checkpoints.convert import convert
from app.checkpoints.loading import load_checkpoint
from app.cli import main
from app.errors import ModelRefusedError, StartError
from tests.models import make_model

WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"


class RunsCode:
    """Unpickled, it makes a directory."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A checkpoint whose weights are one `.bin` file."""
    directory = make_model(tmp_path / "old")
    torch.save(load_file(directory / WEIGHTS), directory / PICKLE)
    (directory / WEIGHTS).rename(tmp_path / "expected.safetensors")
    return directory


def shard(directory: Path) -> dict[str, str]:
    """Splits the `.bin` file in two with an index, which is returned."""
    tensors = torch.load(directory / PICKLE, weights_only=True)
    names = sorted(tensors)
    index: dict[str, str] = {}
    for i, own in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({name: tensors[name] for name in own}, directory / file)
        index |= dict.fromkeys(own, file)
    (directory / f"{PICKLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (directory / PICKLE).unlink()
    return index


def assert_equal(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_a_refusal_of_bin_weights_names_the_command_that_makes_the_checkpoint_load(
    pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelRefusedError, match=f"run `reward-service convert {pickled}`"):
        load_checkpoint(str(pickled), device="cpu")
    assert main(["convert", str(pickled)]) == 0
    assert "in model.safetensors" in capsys.readouterr().out
    assert_equal(load_file(pickled / WEIGHTS), load_file(tmp_path / "expected.safetensors"))
    load_checkpoint(str(pickled), device="cpu")


def test_a_new_directory_gets_the_whole_checkpoint_without_the_pickles(pickled: Path, tmp_path: Path) -> None:
    (pickled / "training_args.bin").write_bytes(b"never opened")
    (pickled / "reward.json").write_text("{}")
    (pickled / "additional_chat_templates").mkdir()
    (pickled / "checkpoint-5").mkdir()
    (pickled / "checkpoint-5/optimizer.pt").touch()
    out = tmp_path / "new"
    assert main(["convert", str(pickled), str(out)]) == 0
    expected = {file.name for file in pickled.iterdir()} - {PICKLE, "training_args.bin", "checkpoint-5"} | {WEIGHTS}
    assert {file.name for file in out.iterdir()} == expected
    assert not (pickled / WEIGHTS).exists()
    (out / "reward.json").unlink()
    load_checkpoint(str(out), device="cpu")


@pytest.mark.parametrize("in_place", [True, False])
def test_shards_become_shards_with_an_index(pickled: Path, tmp_path: Path, *, in_place: bool) -> None:
    shard(pickled)
    out = pickled if in_place else tmp_path / "new"
    convert(pickled, None if in_place else out)
    index = json.loads((out / f"{WEIGHTS}.index.json").read_text())
    assert set(index["weight_map"].values()) == {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    found: dict[str, torch.Tensor] = {}
    for file in set(index["weight_map"].values()):
        own = load_file(out / file)
        assert {name for name, where in index["weight_map"].items() if where == file} == own.keys()
        found |= own
    assert_equal(found, load_file(tmp_path / "expected.safetensors"))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert not list(tmp_path.rglob("*.partial"))
    load_checkpoint(str(out), device="cpu")


def test_of_tensors_that_share_memory_the_trunks_own_is_kept_and_the_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedding, norm = torch.randn(8, 4), torch.randn(4)
    torch.save(
        {
            "lm_head.weight": embedding,
            "model.model.embed_tokens.weight": embedding,
            "transformer.embed_tokens.weight": embedding,
            "model.model.norm.weight": norm,
            "transformer.norm.weight": norm,
            "first_half": norm[:2],
            "transposed": embedding.T,
        },
        tmp_path / PICKLE,
    )
    assert main(["convert", str(tmp_path)]) == 0
    assert_equal(
        load_file(tmp_path / WEIGHTS),
        {
            "transformer.embed_tokens.weight": embedding,
            "transformer.norm.weight": norm,
            "first_half": norm[:2],
            "transposed": embedding.T,
        },
    )
    told = capsys.readouterr().out
    assert "lm_head.weight is the same tensor as transformer.embed_tokens.weight and was left out" in told
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        assert file.metadata()["model.model.norm.weight"] == "transformer.norm.weight"


def test_types_and_values_stay_to_the_bit_in_both_formats_of_torch(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(3).bfloat16(),
        "long": torch.arange(3),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "empty": torch.zeros(0, 2),
    }
    for name, zipped in (("new", True), ("old", False)):
        (tmp_path / name).mkdir()
        torch.save(tensors, tmp_path / name / PICKLE, _use_new_zipfile_serialization=zipped)
        convert(tmp_path / name)
        assert_equal(load_file(tmp_path / name / WEIGHTS), tensors)


@pytest.mark.parametrize(
    ("name", "target"),
    [("adapter_model.bin", "adapter_model.safetensors"), ("value_head.bin", "value_head.safetensors")],
)
def test_adapters_and_value_heads_are_converted_too(tmp_path: Path, name: str, target: str) -> None:
    tensors = {"v_head.summary.weight": torch.randn(1, 4)}
    torch.save(tensors, tmp_path / name)
    convert(tmp_path)
    assert_equal(load_file(tmp_path / target), tensors)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_never_run(
    pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, zipped: bool
) -> None:
    trace, out = tmp_path / "trace", tmp_path / "new"
    content = {"norm.weight": torch.zeros(2), "more": RunsCode(trace)}
    torch.save(content, pickled / PICKLE, _use_new_zipfile_serialization=zipped)
    assert main(["convert", str(pickled), str(out)]) == 1
    told = capsys.readouterr().err
    assert "contains more than tensors and is not opened" in told
    assert "\n" not in told.strip()
    assert not trace.exists()
    assert not out.exists()
    (pickled / PICKLE).write_bytes(pickle.dumps(RunsCode(trace)))
    with pytest.raises(StartError):
        convert(pickled, out)
    assert not trace.exists()


def nested(directory: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, directory / PICKLE)


def a_list(directory: Path) -> None:
    torch.save([torch.zeros(1)], directory / PICKLE)


def cut_short(directory: Path) -> None:
    (directory / PICKLE).write_bytes((directory / PICKLE).read_bytes()[:200])


def a_lost_shard(directory: Path) -> None:
    (directory / sorted(set(shard(directory).values()))[1]).unlink()


def a_lost_tensor(directory: Path) -> None:
    index = shard(directory)
    file = directory / index["score.weight"]
    tensors = torch.load(file, weights_only=True)
    del tensors["score.weight"]
    torch.save(tensors, file)


def a_path_in_the_index(directory: Path) -> None:
    (directory / f"{PICKLE}.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.bin"}}))


def a_deep_index(directory: Path) -> None:
    (directory / f"{PICKLE}.index.json").write_text("[" * 10_000)


def both_formats(directory: Path) -> None:
    (directory / WEIGHTS).write_text("mine")


REFUSED = {
    nested: "has a dict under 'state_dict' where a dense tensor is expected; save the model's state_dict",
    a_list: "contains a list, not tensors by name",
    cut_short: "get an intact file",
    a_lost_shard: "pytorch_model-00002-of-00002.bin is missing",
    a_lost_tensor: "lacks score.weight",
    a_path_in_the_index: "is not an index of weights",
    a_deep_index: "is not an index of weights .recursion limit exceeded",
    both_formats: "has model.safetensors beside pytorch_model.bin",
    lambda directory: (directory / PICKLE).unlink(): "has no weights to convert",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("in_place", [True, False])
def test_what_cannot_be_converted_leaves_nothing_behind(
    pickled: Path, tmp_path: Path, spoil: Any, *, in_place: bool
) -> None:
    spoil(pickled)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    with pytest.raises(StartError, match=REFUSED[spoil]):
        convert(pickled, None if in_place else tmp_path / "new")
    del before[pickled]
    after = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file != pickled}
    assert after == before


def test_nothing_is_overwritten(pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert main(["convert", str(pickled), str(out)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["mine"]
    assert main(["convert", str(pickled)]) == 0
    converted = (pickled / WEIGHTS).read_bytes()
    assert main(["convert", str(pickled)]) == 1
    assert (pickled / WEIGHTS).read_bytes() == converted
