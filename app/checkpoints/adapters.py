"""Adapters saved by peft (LoRA and variants): finds their base, and merges base and adapter into one set of weights."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.checkpoints.adapter_files import CONFIG, WEIGHTS, find_base, holds_adapter
from app.checkpoints.files import find_file, read_json
from app.checkpoints.weights import open_safetensors
from app.errors import ModelRefusedError, one_line

PEFT_PREFIX = "base_model.model."
"""peft's prefix of the base's tensor names."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's files, and its base: a directory, or `hf:` and a hub id."""

    directory: Path
    base: str
    brings_tokenizer: bool

    @property
    def weights(self) -> Path:
        return self.directory / WEIGHTS


def find_adapter(source: str, path: str, *, local_files_only: bool) -> Adapter | None:
    """The adapter in `path`, a directory or a hub id; None if it has none, or also a complete model.

    Raises ModelRefusedError if its base is unknown or missing.
    """
    config_file = find_file(path, CONFIG, local_files_only=local_files_only)
    if config_file is None or not holds_adapter(path, local_files_only=local_files_only):
        return None
    if find_file(path, WEIGHTS, local_files_only=local_files_only) is None:
        raise FileNotFoundError(f"no file named {WEIGHTS}")
    tokenizer = find_file(path, "tokenizer_config.json", local_files_only=local_files_only)
    directory = config_file.parent
    base = base_of(source, directory, may_be_remote=not local_files_only)
    return Adapter(directory, base, brings_tokenizer=tokenizer is not None)


def base_of(source: str, directory: Path, *, may_be_remote: bool) -> str:
    """The base that the adapter's config names (see `find_base`). Raises ModelRefusedError if it cannot be merged."""
    from peft import PeftConfig

    read_json(directory / CONFIG)  # names its faults
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelRefusedError(
            f"{source} has an {CONFIG} that peft cannot read ({one_line(error)}); save the adapter again, or update peft"
        ) from error
    if config.is_prompt_learning:
        raise ModelRefusedError(
            f"{source} is a {config.peft_type} adapter, which cannot be merged into its base; use LoRA"
        )
    return find_base(source, directory, config.base_model_name_or_path or "", may_be_remote=may_be_remote)


def merged_weights(net: PreTrainedModel, adapter: Adapter, *, is_shared: bool = False) -> dict[str, Tensor]:
    """The weights of `net`, the base in float32, with the adapter merged: W + scale * B A. `net` must not be used afterwards.

    With `is_shared`, the base's tensors are never written to: weights that the adapter changes get memory of their own, the
    others stay the base's tensors. Raises what peft raises, ValueError if the adapter's file lacks weights, and ModelRefusedError
    if it has tensors that the base does not use.
    """
    from peft import PeftConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    originals = {name: weight.data for name, weight in net.named_parameters()} if is_shared else {}
    untie(net)
    if is_shared:
        copy_replaced_weights(net, adapter)
    config = PeftConfig.from_pretrained(str(adapter.directory))
    config.inference_mode = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's and transformers' warnings about each other
        wrapped: Any = get_peft_model(net, config)
        loaded = wrapped.load_adapter(str(adapter.directory), "default")
        if loaded.missing_keys:
            raise ValueError(f"its file lacks {', '.join(sorted(loaded.missing_keys)[:3])}")
        if loaded.unexpected_keys:
            raise ModelRefusedError(
                f"{adapter.weights} has tensors that its base does not use ({', '.join(sorted(loaded.unexpected_keys)[:3])}); use the "
                "base that it was trained on, or remove them"
            )
        if is_shared:
            for layer in wrapped.modules():
                if isinstance(layer, BaseTunerLayer):
                    copy_weights(layer.get_base_layer().parameters())
        merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    return {name: original_if_equal(tensor, originals.get(name)) for name, tensor in merged.state_dict().items()}


def original_if_equal(tensor: Tensor, original: Tensor | None) -> Tensor:
    """The base's tensor if the adapter did not change it, such as the bias of a layer whose weight it changed."""
    return original if original is not None and torch.equal(tensor, original) else tensor


def copy_replaced_weights(net: PreTrainedModel, adapter: Adapter) -> None:
    """Copies the base's parameters that the adapter's file replaces, such as biases, so that it overwrites the copies."""
    parameters = dict(net.named_parameters())
    with open_safetensors(adapter.weights) as tensors:
        names = [name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".") for name in tensors.keys()]  # noqa: SIM118 - not a mapping
    copy_weights(parameters[name] for name in names if name in parameters)


def copy_weights(weights: Iterable[Tensor]) -> None:
    for weight in weights:
        weight.data = weight.data.clone()


def untie(net: PreTrainedModel) -> None:
    """Gives the output embedding a copy of tied weights, so that an adapter on the input embedding does not change the logits."""
    model: Any = net
    output = model.get_output_embeddings()
    if output is not None and output.weight is model.get_input_embeddings().weight:
        output.weight = nn.Parameter(output.weight.detach().clone())
