"""Saves what was trained: for each rating an adapter with its head, and unless only that is asked for, both merged into the base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.checkpoints.adapter_files import WEIGHTS
from app.checkpoints.adapters import PEFT_PREFIX
from app.checkpoints.loading import load_checkpoint
from app.training.outcome import save_checkpoint

HEAD = f"{PEFT_PREFIX}score."


def split_heads(tensors: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """For each rating's name peft's tensors with the head's own row in place of all of them: (1, width) of (ratings, width)."""
    return {
        name: {
            key: (tensor[row : row + 1] if key.startswith(HEAD) else tensor).contiguous()
            for key, tensor in tensors.items()
        }
        for row, name in enumerate(names)
    }


@dataclass(frozen=True, slots=True)
class Adapter:
    """A rating's adapter: that which all share, with the rating's head."""

    tensors: Mapping[str, Tensor]
    config: Any
    """peft's. It names the base by its absolute path."""
    tokenizer: PreTrainedTokenizerBase
    """Its pad token decides which token is scored."""

    def save(self, folder: Path) -> None:
        """Into a directory that it makes, if it is not there."""
        folder.mkdir(exist_ok=True)
        save_file(dict(self.tensors), folder / WEIGHTS, metadata={"format": "pt"})
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def save_merged(self, folder: Path, dtype: torch.dtype) -> None:
        """Merged into its base, as the service merges it, in the dtype with the head in float32; the adapter in `adapter/`."""
        adapter = folder / "adapter"
        self.save(adapter)
        checkpoint = load_checkpoint(str(adapter), device="cpu", dtype="float32")
        save_checkpoint(checkpoint.net, checkpoint.tokenizer, dtype, folder)


def adapters_of(net: Any, tokenizer: PreTrainedTokenizerBase, base: Path, names: Sequence[str]) -> dict[str, Adapter]:
    """By the ratings' names, in the head's order."""
    from peft import get_peft_model_state_dict

    config = net.peft_config["default"]
    config.base_model_name_or_path = str(base.resolve())
    config.inference_mode = True
    tensors = {key: tensor.cpu() for key, tensor in get_peft_model_state_dict(net).items()}
    return {name: Adapter(own, config, tokenizer) for name, own in split_heads(tensors, names).items()}
