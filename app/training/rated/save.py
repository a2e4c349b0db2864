"""Saves what was trained: for each rating an adapter with its head, and unless only that is asked for, both merged into the base."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.checkpoints.adapter_files import WEIGHTS
from app.checkpoints.adapters import PEFT_PREFIX
from app.checkpoints.loading import load_checkpoint
from app.files.output import share
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


def save_adapters(net: Any, tokenizer: PreTrainedTokenizerBase, base: Path, folders: Mapping[str, Path]) -> None:
    """Saves, under each rating's name, the adapter that all share and the rating's head; ratings in the head's order.

    Each names the base by its absolute path, and has the tokenizer, whose pad token decides which token is scored.
    """
    from peft import get_peft_model_state_dict

    config = net.peft_config["default"]
    config.base_model_name_or_path = str(base.resolve())
    config.inference_mode = True
    tensors = {key: tensor.cpu() for key, tensor in get_peft_model_state_dict(net).items()}
    for name, own in split_heads(tensors, list(folders)).items():
        folder = folders[name]
        folder.mkdir(parents=True)
        save_file(own, folder / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        share(folder)


def save_merged(adapter: Path, dtype: torch.dtype, out: Path) -> None:
    """Saves the adapter merged into its base, as the service merges it, in the dtype with the head in float32."""
    checkpoint = load_checkpoint(str(adapter), device="cpu", dtype="float32")
    save_checkpoint(checkpoint.net, checkpoint.tokenizer, dtype, out)
