"""Quantizes the weights of linear layers to 8 bits with one scale per row, through torchao. Knows no files."""

from typing import Any

import torch
from torch import nn


def weight_types(net: nn.Module, head: str | None, dtype: torch.dtype, *, int8: bool) -> dict[str, torch.dtype]:
    """The dtype of each parameter: float32 in the head, int8 (if requested) for linear layers' matrices, else `dtype`."""
    types = dict.fromkeys((name for name, _ in net.named_parameters()), dtype)
    if int8:
        types |= {f"{name}.weight": torch.int8 for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    if head is not None:
        types |= {f"{head}.{name}": torch.float32 for name, _ in net.get_submodule(head).named_parameters()}
    return types


def int8_config(head: str | None) -> Any:
    """The quantization config for `from_pretrained`: each matrix w is rounded to q * s as it is read, with s = max |w| / 127
    per row, and products are (x q) s in the activations' dtype."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(
        Int8WeightOnlyConfig(set_inductor_config=False), modules_to_not_convert=None if head is None else [head]
    )
