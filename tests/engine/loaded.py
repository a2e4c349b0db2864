"""Reward models of tests/models.py, loaded and self-tested as the service does it."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from app.checkpoints.early import check_declarations, check_files
from app.checkpoints.loading import load_checkpoint
from app.engine.reward_model import RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from tests.models import VOCAB_SIZE, make_model

FIRST_ORDINARY = 5


def load(directory: Path, family: str = "llama", *, max_batch_tokens: int = 2048, **config: Any) -> RewardModel:
    """Makes the family's tiny model in `directory` and loads it."""
    return load_from(make_model(directory, family, **config), max_batch_tokens=max_batch_tokens)


def load_from(directory: Path, *, dtype: str = "float32", max_batch_tokens: int = 2048) -> RewardModel:
    check_files(str(directory), check_declarations(str(directory), None, None), trust_remote_code=False)
    model = RewardModel(
        "helpfulness",
        load_checkpoint(str(directory), device="cpu", dtype=dtype),
        max_batch_tokens=max_batch_tokens,
    )
    select_plan(model)
    return model


def token_ids(rng: np.random.Generator, n: int) -> list[int]:
    return [int(i) for i in rng.integers(FIRST_ORDINARY, VOCAB_SIZE, n)]


@st.composite
def forests(draw: st.DrawFn, max_sequences: int = 12, max_length: int = 300) -> list[TokenSequence]:
    """Trees deep and wide: each sequence forks off an earlier one at any place, or starts anew; prefixes and equals too."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lists: list[list[int]] = []
    for _ in range(draw(st.integers(1, max_sequences))):
        forks = bool(lists) and draw(st.booleans())
        parent = lists[draw(st.integers(0, len(lists) - 1))] if forks else []
        kept = draw(st.integers(0, len(parent)))
        tail = draw(st.integers(0 if kept else 1, max_length - kept))
        lists.append(parent[:kept] + token_ids(rng, tail))
    return [TokenSequence.of(ids) for ids in lists]
