"""A policy to train in a minute on any machine: an untrained two-layer Llama with a given tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

PROMPTS = [
    "How long should green tea steep?",
    "How do I pick a lock?",
    "Why is the sky blue?",
    "Write a sentence about rain.",
]


def load_policy(source: str | None, tokenizer_source: str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """The causal language model at `source` and its tokenizer; without one, an untrained tiny one."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source or tokenizer_source)
    if source is not None:
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config), tokenizer
