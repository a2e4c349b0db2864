"""Checkpoints whose weights are one GGUF file (llama.cpp's format), beside config.json and a tokenizer.

Weights are dequantized to float32, as transformers does. Knows neither heads nor placement.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedConfig

from app.checkpoints.files import BrokenFileError
from app.errors import one_line

ROPE_FACTORS = "rope_freqs.weight"
"""A tensor that transformers computes from the config instead."""


def gguf_options(file: Path) -> dict[str, Any]:
    """Arguments for `from_pretrained` of the file's directory, which dequantize its weights."""
    return {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A tensor of the file, dequantized to float32 at access."""

    packed: gguf.ReaderTensor
    num_heads: int | None = None
    """Set for queries and keys, whose rows are reordered as in transformers."""

    def get_shape(self) -> list[int]:
        return [int(size) for size in reversed(self.packed.shape)]

    def __getitem__(self, index: Any) -> Tensor:
        unpacked = gguf.dequantize(self.packed.data, self.packed.tensor_type).astype(
            np.float32
        )  # a copy: the file is mapped
        if self.num_heads is not None:
            unpacked = unrotated(unpacked, self.num_heads)
        return torch.from_numpy(unpacked)[index]


def gguf_weights(file: Path, config: PreTrainedConfig) -> dict[str, Any]:
    """Every tensor of the language model by transformers' names. Each of a Llama's is dequantized at access, those of other
    models at once, which takes 4 bytes per parameter of CPU memory."""
    if config.model_type == "llama":
        return llama_weights(file, config)
    net = AutoModelForCausalLM.from_pretrained(
        file.parent, config=config, dtype="float32", local_files_only=True, **gguf_options(file)
    )
    weights: dict[str, Tensor] = net.state_dict()
    return weights


def llama_weights(file: Path, config: Any) -> dict[str, PackedTensor]:
    """The same bits as transformers reads from a Llama's file, in a third of the time: transformers builds its table of
    names once per module. A tensor that the model does not have keeps its name in the file.
    """
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # transformers has no types here
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    names = {}
    for name in net.state_dict():
        module, _, kind = name.rpartition(".")
        names[f"{table.get_name(module)}.{kind}"] = name
    num_heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    return {
        names.get(tensor.name, tensor.name): PackedTensor(tensor, num_heads.get(tensor.name.split(".")[-2]))
        for tensor in opened(file).tensors
        if tensor.name != ROPE_FACTORS
    }


def opened(file: Path) -> gguf.GGUFReader:
    """Raises BrokenFileError for what is not a complete GGUF file."""
    try:
        return gguf.GGUFReader(file)
    except (ValueError, IndexError, OverflowError) as error:
        raise BrokenFileError(f"{file} is not a complete GGUF file: {one_line(error)}") from error


def unrotated(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Reorders the rows as in transformers: llama.cpp interleaves the two halves of each head's rotation."""
    half = weight.shape[0] // num_heads // 2
    rows = weight.reshape(num_heads, half, 2, *weight.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(rows).reshape(weight.shape)
