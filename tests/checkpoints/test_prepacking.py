"""Linear layers in oneDNN's order: the same products within rounding, the same bits for every number of rows and threads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from app import service
from app.checkpoints import prepacking
from app.checkpoints.loading import load_checkpoint
from app.checkpoints.prepacking import PrepackedLinear, is_prepackable, is_prepacking_faster, prepack
from app.checkpoints.sharing import shared_bytes
from app.settings import Settings
from tests.checkpoints.test_adapters import make_adapter
from tests.checkpoints.test_sharing import load_all, scores_of
from tests.engine.test_families import decoder_families, tiny_config
from tests.models import make_model

ONEDNN: Any = torch.backends.mkldnn
pytestmark = [
    pytest.mark.skipif(not ONEDNN.is_available(), reason="this build of torch has no oneDNN, and so never prepacks"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks transformers
]


@pytest.fixture(autouse=True)
def no_matrix_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacking, "MIN_ELEMENTS", 1)


def prepacked(linear: nn.Linear) -> PrepackedLinear:
    holder: Any = nn.Sequential(linear)
    prepacking.replace([(holder, "0", linear)])
    packed = holder[0]
    assert isinstance(packed, PrepackedLinear)
    return packed


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 32), (33, 71), (1536, 128)])
def test_a_layer_gives_its_products_whatever_else_is_computed(inputs: int, outputs: int, bias: bool) -> None:
    linear = nn.Linear(inputs, outputs, bias=bias).requires_grad_(requires_grad=False)
    states = torch.randn(2, 150, inputs)
    expected = linear.double()(states.double()).float()
    linear = linear.float()
    weight = linear.weight.clone()
    packed = prepacked(linear)
    with torch.inference_mode():
        out = packed(states)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        for rows in (2, 3, 16, 64, 149):
            assert torch.equal(packed(states[0, :rows]), out[0, :rows]), rows
        assert packed(states[0, :0]).shape == (0, outputs)
    assert torch.equal(packed.plain().weight, weight)


@pytest.mark.parametrize("family", decoder_families())
def test_every_decoder_runs_with_prepacked_layers(family: str) -> None:
    torch.manual_seed(0)
    net = AutoModel.from_config(AutoConfig.for_model(**tiny_config(family) | {"pad_token_id": 0})).eval()  # type: ignore[no-untyped-call]
    ids = torch.arange(5, 45)[None]
    num_linear = sum(map(is_prepackable, net.modules()))
    with torch.inference_mode():
        expected = net(input_ids=ids).last_hidden_state
        prepack([net])
        states = net(input_ids=ids).last_hidden_state
    num_packed = sum(isinstance(layer, PrepackedLinear) for layer in net.modules())
    assert num_packed == (0 if family in READ_A_WEIGHT else num_linear)
    assert num_linear or family in WITHOUT_LINEAR
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)


WITHOUT_LINEAR = {"falcon", "gpt-sw3", "gpt2", "openai-gpt"}
"""Their layers are of classes of their own."""
READ_A_WEIGHT = {"jamba"}
"""Their own code reads a layer's weight, so they keep torch's layers."""


def test_adapters_on_one_base_still_share_what_neither_changes(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", attention_bias=True)
    adapters = [make_adapter(tmp_path / f"adapter{seed}", base, seed=seed) for seed in (1, 2)]
    alone = [load_checkpoint(str(adapter), device="cpu") for adapter in adapters]
    for each in alone:
        prepack([each.net])
    together = load_all(adapters)
    before = shared_bytes(together[1].net, [together[0].net])
    prepack([each.net for each in together])
    assert shared_bytes(together[1].net, [together[0].net]) == before > 0
    assert shared_bytes(alone[1].net, [alone[0].net]) == 0
    scores = [scores_of(each) for each in together]
    assert scores == [scores_of(each) for each in alone]
    assert scores[0] != scores[1]


class ReadsTheWeight(nn.Module):
    """As Jamba does in its Mamba layers."""

    base_model: Any

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.proj = nn.Linear(8, 8)
        self.base_model = self

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        assert attention_mask.shape == input_ids.shape
        states: torch.Tensor = self.embed(input_ids) @ self.proj.weight
        return states


def test_a_trunk_that_reads_a_weight_itself_keeps_its_layers() -> None:
    net: Any = ReadsTheWeight()
    weight = net.proj.weight.detach().clone()
    prepack([net])
    assert type(net.proj) is nn.Linear
    assert torch.equal(net.proj.weight, weight)


@pytest.mark.parametrize("faster", [True, False])
def test_the_service_prepacks_where_that_is_faster(
    faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "is_prepacking_faster", lambda: faster)
    names = [str(make_model(tmp_path / name, seed=seed)) for seed, name in enumerate(("safety", "helpfulness"))]
    models = service.load_models(Settings(safety_model=names[0], helpfulness_model=names[1]))
    for model in models.values():
        assert any(isinstance(layer, PrepackedLinear) for layer in model.trunk.modules()) == faster
        assert model.plan.path == "packed"
        assert model.plan.batch_invariant


@pytest.mark.parametrize(
    ("text", "faster"), [("vendor_id\t: AuthenticAMD\n", True), ("vendor_id\t: GenuineIntel\n", False), (None, False)]
)
def test_amds_processors_are_told_by_the_kernel(
    text: str | None, faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(prepacking, "CPU_INFO", file)
    assert is_prepacking_faster() == faster
