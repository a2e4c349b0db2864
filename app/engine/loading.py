"""Checkpoints from disk or hub: what may be served, on which device, in which dtype. Knows nothing of batches.

What must not be served is refused here, at start, in one line that names the reason and the remedy.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from app.errors import ModelRefusedError
from app.settings import HUB_PREFIX

UNTRAINED_MARK = {"reward_head": "untrained"}
"""Metadata that `reward-service init` leaves in the file of a head; any training that saves its model drops it."""
UNKNOWN_MAX_LENGTH = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A scalar reward model as it was loaded."""

    source: str
    version: str  # the hub's commit, or the weights' hash
    net: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    max_length: int
    vocab_size: int


def pick_device(wanted: str) -> torch.device:
    """`auto` is the first accelerator that is there (CUDA, MPS), else the CPU."""
    if wanted == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device(accelerator.type if accelerator is not None else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelRefusedError(
            f"device {wanted!r} cannot be used ({one_line(error)}); set it to auto or cpu"
        ) from error
    return device


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = getattr(torch, wanted)
    assert isinstance(dtype, torch.dtype)
    return dtype


def load_checkpoint(
    source: str, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> Checkpoint:
    """The checkpoint of a directory, or of a hub id behind `hf:`; the head in float32 whatever the trunk's dtype.

    Raises ModelRefusedError where it must not be served.
    """
    place = pick_device(device)
    path = source.removeprefix(HUB_PREFIX)
    options: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "local_files_only": not source.startswith(HUB_PREFIX),
    }
    with refusing(source), quiet_transformers():
        config = AutoConfig.from_pretrained(path, **options)
        refuse_config(source, config)
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        net, loading = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=pick_dtype(dtype, place),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, in our words
            **options,
        )
    refuse_missing(source, loading["missing_keys"])
    refuse_mismatched(source, loading["mismatched_keys"])
    files = weight_files(path, options)
    keep_head_exact(net, files)
    refuse_weights(source, net, files)
    net.requires_grad_(requires_grad=False).eval().to(place)
    return Checkpoint(
        source=source,
        version=getattr(config, "_commit_hash", None) or weights_hash(files),
        net=net,
        tokenizer=tokenizer,
        device=place,
        max_length=max_length(net, tokenizer),
        vocab_size=net.get_input_embeddings().num_embeddings,
    )


def refuse_config(source: str, config: PreTrainedConfig) -> None:
    architecture = (getattr(config, "architectures", None) or ["of no named architecture"])[0]
    if "SequenceClassification" not in architecture:
        raise ModelRefusedError(
            f"{source} is {architecture}, not a sequence classifier; make a reward model of it with "
            f"`reward-service init --from-lm {source} --out DIR` and train it"
        )
    if config.num_labels != 1:
        raise ModelRefusedError(
            f"{source} has num_labels {config.num_labels}; a reward model has one scalar output: "
            "train a head with num_labels=1"
        )


def refuse_missing(source: str, missing: set[str]) -> None:
    if missing:
        named = ", ".join(sorted(missing)[:3])
        raise ModelRefusedError(
            f"{source} lacks weights ({named}), so they would be random; train the head and save it with the checkpoint"
        )


def refuse_mismatched(source: str, mismatched: set[tuple[str, torch.Size, torch.Size]]) -> None:
    for name, saved, wanted in sorted(mismatched):
        raise ModelRefusedError(
            f"{source} has {name} of shape {list(saved)} where its config asks for {list(wanted)}; "
            "use a config and weights that were saved together"
        )


def refuse_weights(source: str, net: PreTrainedModel, files: list[Path]) -> None:
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            if UNTRAINED_MARK.items() <= (tensors.metadata() or {}).items():
                raise ModelRefusedError(
                    f"{source} has an untrained head, as `reward-service init` made it; train it and serve the result"
                )
    for name, weight in net.named_parameters():
        if not torch.isfinite(weight).all():
            raise ModelRefusedError(f"{source} has NaN or infinite weights in {name}; use an intact checkpoint")


def head_of(net: PreTrainedModel) -> tuple[str, nn.Linear]:
    """The head and its name: the last linear layer with one output (`score`, `classifier`, `classifier.out_proj`)."""
    linears = ((name, m) for name, m in net.named_modules() if isinstance(m, nn.Linear) and m.out_features == 1)
    *_, last = linears
    return last


def keep_head_exact(net: PreTrainedModel, files: list[Path]) -> None:
    """The head as float32 from the file itself: a detour over the trunk's dtype would round it."""
    name, head = head_of(net)
    if head.weight.dtype == torch.float32:
        return
    head.float()
    head.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for key in {f"{name}.weight", f"{name}.bias"} & set(tensors.keys()):
                parameter: Tensor = getattr(head, key.removeprefix(f"{name}."))
                parameter.data.copy_(tensors.get_tensor(key))


def max_length(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest sequence that both the model's positions and its tokenizer allow."""
    text_config = net.config.get_text_config()
    limits = [getattr(text_config, "max_position_embeddings", None), tokenizer.model_max_length]
    for module in net.modules():  # RoBERTa counts its positions from behind the pad id
        positions = getattr(module, "position_embeddings", None)
        if isinstance(positions, nn.Embedding) and positions.padding_idx is not None:
            limits.append(positions.num_embeddings - positions.padding_idx - 1)
    return min([limit for limit in limits if limit is not None and limit > 0], default=UNKNOWN_MAX_LENGTH)


def weight_files(path: str, options: dict[str, Any]) -> list[Path]:
    """The safetensors files that hold the weights, one or those that the index names."""
    local = {"local_files_only": options["local_files_only"]}
    index = cached_file(path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False, **local)
    names = ["model.safetensors"]
    if index is not None:
        names = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
    found = (cached_file(path, name, _raise_exceptions_for_missing_entries=False, **local) for name in names)
    return [Path(file) for file in found if file is not None]


def weights_hash(files: list[Path]) -> str:
    """sha256 over the files' bytes: equal for equal weights."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return f"sha256:{digest.hexdigest()[:16]}"


@contextmanager
def refusing(source: str) -> Iterator[None]:
    """Turns what transformers raises about a checkpoint into one readable line."""
    try:
        yield
    except ModelRefusedError:
        raise
    except Exception as error:
        hint = "check that it holds config.json, a tokenizer and model.safetensors"
        if "trust_remote_code" in str(error):
            hint = "it brings code of its own: read it, then set REWARD_TRUST_REMOTE_CODE=true"
        elif any(os.fspath(file).endswith((".bin", ".pt")) for file in Path(source).glob("*")):
            hint = "only safetensors are read: save it with save_pretrained, which writes them"
        raise ModelRefusedError(f"{source} cannot be loaded ({one_line(error)}); {hint}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Its warnings about a checkpoint are our refusals, and its progress bars no one's log."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
