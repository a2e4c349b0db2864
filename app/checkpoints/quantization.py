"""Weights of linear layers in 8 bits, a scale a row, through torchao; the rest stays as it is. Knows no files."""

from typing import Any

import torch
from torch import nn


def weight_types(net: nn.Module, head: str | None, dtype: torch.dtype, *, int8: bool) -> dict[str, torch.dtype]:
    """What each parameter is loaded as: the head float32, linear layers' matrices int8 where wanted, the rest `dtype`."""
    types = dict.fromkeys((name for name, _ in net.named_parameters()), dtype)
    if int8:
        types |= {f"{name}.weight": torch.int8 for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    if head is not None:
        types |= {f"{head}.{name}": torch.float32 for name, _ in net.get_submodule(head).named_parameters()}
    return types


def int8_config(head: str | None) -> Any:
    """For `from_pretrained`: each matrix w is rounded to q * s as it is read, s = max |w| / 127 of its row, and products
    are (x q) s in the activations' own type."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(
        Int8WeightOnlyConfig(set_inductor_config=False), modules_to_not_convert=None if head is None else [head]
    )
