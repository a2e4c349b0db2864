from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.conftest import Serve


@pytest.fixture(scope="session")
def tokenizer(safety_dir: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(safety_dir)
    return loaded


@pytest.fixture(scope="session")
def hurried(serve: Serve) -> Iterator[httpx.Client]:
    """A server whose operator gives every request a deadline that none can meet."""
    with serve(deadline_seconds=1e-6) as client:
        yield client


@pytest.fixture(scope="session")
def only_helpfulness(serve: Serve) -> Iterator[httpx.Client]:
    with serve(safety_model="") as client:
        yield client
