"""Reward models of random weights, made on the device; no file is read or written."""

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from app.engine.checkpoint import Checkpoint
from app.engine.head import Head, Layer, Position
from app.engine.reward_model import RewardModel

PAD = 0


def make_net(device: torch.device, dtype: torch.dtype, **config: Any) -> Any:
    """A sequence classifier with one output; its random weights are large enough for scores to differ visibly."""
    torch.manual_seed(0)
    values = {"num_labels": 1, "pad_token_id": PAD, **config}
    with torch.device(device):
        net: Any = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**values), dtype=dtype)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        net.score.weight.normal_(0, 0.5)
    return net.requires_grad_(requires_grad=False).eval()


def widen(net: Any) -> Any:
    """Enlarges the weights, so that attention affects the score as in a trained model."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, 1.5 * module.in_features**-0.5)
    return net


def make_model(net: Any, device: torch.device, *, max_batch_tokens: int, name: str = "helpfulness") -> RewardModel:
    """A reward model of the net, before its self-test."""
    config = net.config
    words = {"<pad>": PAD, "<unk>": 1} | {f"w{i}": i for i in range(2, 64)}
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    backend = Tokenizer(WordLevel(words, "<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)  # type: ignore[no-untyped-call]
    checkpoint = Checkpoint(
        source=f"random {config.model_type}",
        version="random",
        net=net,
        tokenizer=tokenizer,
        device=device,
        weight_dtype=str(net.dtype).removeprefix("torch."),
        max_length=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        head=Head((Layer(net.score.weight).double(),), position=Position("last_non_pad", (PAD,))),
        is_causal=True,
        is_classifier=True,
    )
    return RewardModel(name, checkpoint, max_batch_tokens=max_batch_tokens)
