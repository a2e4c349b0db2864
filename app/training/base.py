"""What a run starts from: a reward model, or a language model with a new head; and which of its weights are trained.

During training, weights are float32 whatever the checkpoint's dtype. They are saved in that dtype, except for the head, which
is saved in float32, as the service uses it.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    Conv1D,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from app.checkpoints.architecture import architecture_of, is_language_model
from app.checkpoints.building import head_of
from app.checkpoints.checks import refusing
from app.checkpoints.loading import load_checkpoint
from app.checkpoints.max_length import max_length_of
from app.checkpoints.new_head import with_new_head
from app.checkpoints.transformers_checks import quiet_transformers
from app.errors import ModelRefusedError, TrainingError
from app.training.options import TrainOptions


@dataclass(frozen=True, slots=True)
class Base:
    net: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    max_length: int
    has_new_head: bool

    @property
    def vocab_size(self) -> int:
        embeddings = self.net.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        return embeddings.num_embeddings

    @property
    def pad_token_id(self) -> int:
        pad_token_id = self.net.config.get_text_config().pad_token_id
        assert isinstance(pad_token_id, int)
        return pad_token_id


def load_base(directory: Path, seed: int) -> Base:
    """The model in float32 with a pad token that it and its tokenizer agree on.

    A head that `reward-service init` made is trained as it is; a language model gets one like it, drawn from the seed.
    Raises TrainingError if there is no checkpoint, ModelRefusedError if it cannot be trained.
    """
    if not directory.is_dir():
        raise TrainingError(f"no base at {directory}; give a directory with a language model or a reward model")
    source = str(directory)
    with refusing(source), quiet_transformers():
        config = AutoConfig.from_pretrained(source, local_files_only=True)
    is_new = is_language_model(architecture_of(config.architectures))
    net, tokenizer = with_new_head(directory, seed, "float32") if is_new else reward_model(source)
    set_pad_token(source, net, tokenizer)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return Base(net, tokenizer, dtype, max_length_of(net, tokenizer)[0], is_new)


def reward_model(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The checkpoint as it would be served, in float32 on the CPU, to be trained on."""
    checkpoint = load_checkpoint(source, device="cpu", dtype="float32", may_be_untrained=True)
    if not checkpoint.is_classifier:
        raise ModelRefusedError(
            f"{source} has a head of its own ({checkpoint.about['head']}); train from a language model or a plain classifier"
        )
    checkpoint.net.name_or_path = source  # peft writes it into an adapter's config
    return checkpoint.net.requires_grad_(requires_grad=True), checkpoint.tokenizer


def length_limit(options: TrainOptions, base: Base) -> int:
    """The maximum tokens per sequence: `--max-length`, which may not exceed the base's limit, or that limit."""
    if options.max_length is not None and options.max_length > base.max_length:
        raise TrainingError(f"--max-length is {options.max_length}, but the base allows {base.max_length} tokens")
    return options.max_length or base.max_length


def set_pad_token(source: str, net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Sets one pad token for model and tokenizer, the model's if it has one, since it decides which position is scored.

    TRL would replace it by the tokenizer's, which could move the scored position away from the one the base was trained with.
    """
    config = net.config.get_text_config()
    names = ("pad_token_id", "unk_token_id", "eos_token_id")
    for wanted in (config.pad_token_id, *(getattr(tokenizer, name) for name in names)):
        token = tokenizer.convert_ids_to_tokens(wanted) if wanted is not None else None
        if token is not None:
            tokenizer.pad_token = token
            config.pad_token_id = wanted
            return
    raise TrainingError(
        f"{source} has no pad, unknown or end token to pad a batch with; give its tokenizer a pad token"
    )


def layers_of(net: PreTrainedModel) -> nn.ModuleList:
    """The decoder's or encoder's layers: the longest list of modules in the trunk."""
    return max((m for m in net.base_model.modules() if isinstance(m, nn.ModuleList)), key=len)


def freeze(net: PreTrainedModel, num_layers: int) -> None:
    """Freezes the embeddings and the first `num_layers` layers, at least one; raises TrainingError where there are fewer."""
    layers = layers_of(net)
    if num_layers > len(layers):
        raise TrainingError(f"--freeze-layers is {num_layers}, but the base has {len(layers)} layers")
    for module in net.base_model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(requires_grad=False)
    for layer in layers[:num_layers]:
        layer.requires_grad_(requires_grad=False)


def with_lora(net: PreTrainedModel, rank: int, alpha: int, num_frozen: int) -> Any:
    """Low-rank adapters on every linear layer after the first `num_frozen` layers; the head is trained whole.

    W + (alpha / rank) B A with B = 0 at first, so that the model starts as it was (Hu et al. 2021, arXiv 2106.09685).
    """
    import peft

    layers = layers_of(net)
    if num_frozen >= len(layers):
        raise TrainingError(f"--freeze-layers {num_frozen} leaves no layer for LoRA; the base has {len(layers)}")
    head = head_of(net)[0].partition(".")[0]
    modules = {module: name for name, module in net.named_modules()}
    targets = [
        modules[linear]
        for layer in layers[num_frozen:]
        for linear in layer.modules()
        if isinstance(linear, nn.Linear | Conv1D)
    ]
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        modules_to_save=None if head in {"score", "classifier"} else [head],  # these peft adds for this task
        task_type=peft.TaskType.SEQ_CLS,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between the libraries, not ours
        return peft.get_peft_model(net, config)
