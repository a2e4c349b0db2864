"""A model that exceeds one device is spread over several, and its scores are those of the whole one."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from app.checkpoints.loading import load_checkpoint
from app.checkpoints.placement import pick_device, split_map
from app.engine.batch import Batch
from app.engine.reward_model import RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError, install_command
from tests.engine.loaded import load_from, token_ids
from tests.models import make_model

ROOT = Path(__file__).resolve().parent.parent.parent
SPLIT = ("llama", "gpt_neox")


def sequences(seed: int = 7) -> list[TokenSequence]:
    rng = np.random.default_rng(seed)
    trunk = token_ids(rng, 90)
    return [
        TokenSequence.of(trunk[:n] + token_ids(rng, m)) for n, m in [(90, 0), (80, 60), (70, 1), (0, 100), (64, 64)]
    ]


def close(expected: list[float]) -> Any:
    return pytest.approx(expected, abs=1e-5 * max(1, *map(abs, expected)), rel=0)


@pytest.fixture(scope="module")
def found_split(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By family, what all that a start does gives on two devices between which only copies go (see `pretend`)."""
    directories = [str(make_model(tmp_path_factory.mktemp(family), family)) for family in SPLIT]
    done = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-W", "ignore", "-m", "tests.engine.pretend", "130000", *directories],
        cwd=ROOT,
        env=os.environ | {"HF_DEACTIVATE_ASYNC_LOAD": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(SPLIT, map(json.loads, done.stdout.splitlines()[-len(SPLIT) :]), strict=True))


@pytest.mark.parametrize("family", SPLIT)
def test_a_model_split_over_two_accelerators_scores_as_the_whole_one(
    found_split: dict[str, dict[str, Any]], family: str
) -> None:
    found = found_split[family]
    assert found["path"] == "packed", found["reason"]
    assert found["device"] == "pretend:0"
    assert found["devices"] == ["pretend:0", "pretend:1"]
    assert set(found["homes"].values()) == {"pretend:0", "pretend:1"}
    for scores in found["scores"]:
        assert scores == close(found["expected"])


def offloaded(directory: Path, is_offloaded: Callable[[str], bool], folder: Path) -> RewardModel:
    """The checkpoint with some of its modules' weights elsewhere, fetched by accelerate's hooks for each forward."""
    from accelerate import dispatch_model

    checkpoint = load_checkpoint(str(directory), device="cpu")
    weights = (name.rpartition(".")[0] for name, _ in checkpoint.net.named_parameters())
    modules = {re.sub(r"(layers\.\d+)\..*", r"\1", name) for name in weights}  # a layer is moved as a whole
    dispatch_model(
        checkpoint.net,
        {name: "disk" if is_offloaded(name) else "cpu" for name in modules},
        offload_dir=str(folder),
    )
    model = RewardModel("safety", dataclasses.replace(checkpoint), max_batch_tokens=2048)
    select_plan(model)
    return model


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("layer", [0, 2])
def test_layers_whose_weights_are_fetched_for_each_forward_score_alike(tmp_path: Path, family: str, layer: int) -> None:
    """Also the last one, which is called twice; and again after it, when its hook must still be there."""
    whole = load_from(make_model(tmp_path / "model", family))
    expected = [whole.reference_score(sequence) for sequence in sequences()]
    model = offloaded(tmp_path / "model", lambda name: name.endswith(f"layers.{layer}"), tmp_path / "fetched")
    assert any(weight.is_meta for weight in model.net.parameters())
    assert model.plan.path == "packed"
    assert model.plan.skips_last_layer
    for _ in range(2):
        assert [scored.score for scored in model.score(Batch.of(sequences()))] == close(expected)


def test_a_hook_on_the_last_layer_outlives_a_forward(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    model = offloaded(tmp_path / "model", lambda name: name.endswith("layers.2"), tmp_path / "fetched")
    hook = vars(model.layers[-1])["forward"]
    model.score(Batch.of(sequences()))
    assert vars(model.layers[-1])["forward"] is hook


def test_layers_go_evenly_over_the_accelerators_then_into_memory_and_the_head_is_never_there(
    safety_dir: Path,
) -> None:
    with torch.device("meta"):
        net = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(safety_dir))  # type: ignore[no-untyped-call]
    types = dict.fromkeys((name for name, _ in net.named_parameters()), torch.float32)
    roomy = split_map("m", net, "score", types, {0: 10**6, 1: 10**6, "cpu": 0})
    assert set(roomy.values()) == {0, 1}
    tight = split_map("m", net, "score", types, {0: 110_000, "cpu": 10**6})
    assert tight["model.layers.2"] == "cpu"
    assert tight["score"] == 0
    assert not any("self_attn" in module or "mlp" in module for module in (roomy | tight))


def test_without_an_accelerator_there_is_nothing_to_split_over(safety_dir: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ModelRefusedError, match=r"device 'split' cannot be used .*; set it to auto or cpu"):
        load_checkpoint(str(safety_dir), device="split")


@pytest.mark.parametrize(("package", "options"), [("torchao", {"dtype": "int8"})])
def test_a_package_that_is_not_installed_is_asked_for(
    safety_dir: Path, monkeypatch: pytest.MonkeyPatch, package: str, options: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelRefusedError) as refused:
        load_checkpoint(str(safety_dir), **options)
    assert f"needs {package}, which is not installed; run `" in str(refused.value)
    assert str(refused.value).endswith(f"run {install_command('large')}")


def test_cuda_is_the_current_gpu_by_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else models on `cuda` and `cuda:0` would have a queue, a thread and a prefix cache each on one GPU."""
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # there need not be a GPU here
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    assert pick_device("cuda") == pick_device("auto") == torch.device("cuda:1")
    assert pick_device("cuda:0") == torch.device("cuda:0")
    assert pick_device("cpu") == torch.device("cpu")
