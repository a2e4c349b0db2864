"""Real trainers against a running server (`make trainers`)."""

from pathlib import Path

import httpx
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from examples.policy import load_policy


@pytest.fixture
def policy(safety_dir: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """An untrained tiny Llama, and the tokenizer of the tiny reward models."""
    torch.manual_seed(0)
    return load_policy(None, safety_dir)


@pytest.fixture
def url(client: httpx.Client) -> str:
    return str(client.base_url)
