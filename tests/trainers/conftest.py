"""Real trainers against a running server; collected only where they are installed (`make trainers`)."""

from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from examples.policy import load_policy

needed = ("trl", "datasets", "aiohttp", "requests", "matplotlib", "nbclient", "ipykernel")
collect_ignore_glob = [] if all(map(find_spec, needed)) else ["test_*.py"]


@pytest.fixture
def policy(safety_dir: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """An untrained tiny Llama, and the tokenizer of the tiny reward models."""
    torch.manual_seed(0)
    return load_policy(None, safety_dir)


@pytest.fixture
def url(client: httpx.Client) -> str:
    return str(client.base_url)
