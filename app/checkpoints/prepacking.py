"""Linear layers whose weights oneDNN has reordered once, for the CPUs on which its products are faster than MKL's.

torch computes a linear layer in float32 with MKL, which is made for Intel's processors. On an AMD EPYC oneDNN's products with reordered
("prepacked") weights take 0.7 to 0.8 times as long (benchmarks/NOTES.md, 45), and their bits depend on neither the number
of rows, from two on, nor the number of threads. Uses two of torch's private operators, those that its own compiler (inductor) calls.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.checkpoints.sharing import StorageKey, storage_key

CPU_INFO = Path("/proc/cpuinfo")
ROWS = 256
"""The number of rows that the order is chosen for. Any number of rows may be multiplied, to the same bits."""
MIN_ELEMENTS = 1 << 16
"""Smaller matrices are left to MKL: a call of the operator takes 10 us more."""


class PrepackedLinear(nn.Module):
    """A linear layer in float32 whose `weight` has oneDNN's order: it has a shape, but only this layer can read it."""

    bias: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", bias)

    def forward(self, states: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features): states W^T + bias"""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")  # noqa: SLF001
        return out

    def plain(self) -> nn.Linear:
        """The same layer as torch has it, with the bits of its weight before."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight.to_dense(), requires_grad=False)
        if self.bias is not None:
            linear.bias = self.bias
        return linear.eval()


def is_prepacking_faster() -> bool:
    """Whether this machine's processor is AMD's, and torch has oneDNN."""
    with suppress(OSError):
        is_available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return is_available and "AuthenticAMD" in CPU_INFO.read_text()
    return False


def prepack(nets: Sequence[PreTrainedModel]) -> None:
    """Replaces the trunks' linear layers in float32 on the CPU. Layers that share a weight still do, and each weight's memory
    in its old order is freed before the next is reordered.

    A trunk that reads its layers' weights in other ways keeps its layers.
    """
    users: dict[StorageKey, list[tuple[nn.Module, str, nn.Linear]]] = {}
    for net in nets:
        if not hasattr(net, "hf_device_map"):  # its layers have accelerate's hooks
            trunk = net.base_model
            for name, layer in trunk.named_modules():
                if is_prepackable(layer):
                    users.setdefault(storage_key(layer.weight), []).append((trunk, name, layer))
    for key in list(users):
        replace(users.pop(key))
    for net in nets:
        if not runs(net.base_model):
            undo(net.base_model)


def is_prepackable(layer: nn.Module) -> bool:
    """Not for a subclass of `nn.Linear`, which may compute something else."""
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter:
        return False
    weight = layer.weight
    is_plain = weight.layout == torch.strided and weight.device.type == "cpu" and weight.dtype == torch.float32
    return is_plain and weight.numel() >= MIN_ELEMENTS


def replace(layers: Iterable[tuple[nn.Module, str, nn.Linear]]) -> None:
    """The layers of one weight."""
    packed: nn.Parameter | None = None
    for trunk, name, layer in layers:
        if packed is None:
            reordered = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)  # noqa: SLF001
            packed = nn.Parameter(reordered, requires_grad=False)
        trunk.set_submodule(name, PrepackedLinear(packed, layer.bias).eval())


def runs(trunk: nn.Module) -> bool:
    if not any(isinstance(layer, PrepackedLinear) for layer in trunk.modules()):
        return True
    ids = torch.zeros(1, 2, dtype=torch.int64)
    try:
        with torch.inference_mode():
            trunk(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception:  # noqa: BLE001 - whatever the trunk does with the weight: it runs with plain layers
        return False
    return True


def undo(trunk: nn.Module) -> None:
    for name, layer in list(trunk.named_modules()):
        if isinstance(layer, PrepackedLinear):
            trunk.set_submodule(name, layer.plain())
