"""What a checkpoint's names and shapes get wrong is said before any weights are read: the files may be 100 GB."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.checkpoints.loading import load_checkpoint
from app.checkpoints.weights import CheckedTensor
from app.errors import ModelRefusedError
from tests.checkpoints.test_adapters import make_adapter
from tests.checkpoints.test_loading import edit_weights
from tests.models import make_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers


@pytest.fixture(autouse=True)
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(tensor: CheckedTensor, _: Any) -> Tensor:
        raise AssertionError(f"{tensor.name} was read")

    monkeypatch.setattr(CheckedTensor, "__getitem__", read)


Edit = Callable[[dict[str, Tensor]], object]
FAULTS: dict[str, tuple[str, Edit, str]] = {
    "a decoder's layer without a tensor": (
        "qwen3",
        lambda tensors: tensors.pop("model.layers.1.self_attn.q_norm.weight"),
        r"lacks weights \(model.layers.1.self_attn.q_norm.weight\)",
    ),
    "an encoder's layer without a tensor": (
        "bert",
        lambda tensors: tensors.pop("bert.encoder.layer.2.output.dense.bias"),
        r"lacks weights \(bert.encoder.layer.2.output.dense.bias\)",
    ),
    "an encoder without its pooler": (
        "deberta",
        lambda tensors: tensors.pop("pooler.dense.weight"),
        r"lacks weights \(pooler.dense.weight\).*train the head",
    ),
    "an encoder's head of another width": (
        "bert",
        lambda tensors: tensors.update({"classifier.weight": torch.ones(1, 16)}),
        r"classifier.weight of shape \[1, 16\] where its config asks for \[1, 32\]",
    ),
    "a tensor of no place": (
        "phi",
        lambda tensors: tensors.update({"model.layers.1.self_attn.gate.weight": torch.ones(4)}),
        r"does not explain \(model.layers.1.self_attn.gate.weight \[4\]\)",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_checkpoint_is_refused_before_its_weights_are_read(kind: str, tmp_path: Path) -> None:
    family, edit, message = FAULTS[kind]
    edit_weights(make_model(tmp_path, family), edit)
    with pytest.raises(ModelRefusedError, match=message):
        load_checkpoint(str(tmp_path), device="cpu")


def test_an_adapters_base_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    edit_weights(base, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelRefusedError, match=rf"{base} lacks weights \(model.layers.1.mlp.up_proj.weight\)"):
        load_checkpoint(str(adapter), device="cpu")
