"""A family's checkpoint through the service's own loader, compared with its authors' rule."""

import re
from dataclasses import dataclass
from typing import Any

import pytest

from app.checkpoints.early import check_declarations, check_files
from app.checkpoints.loading import load_checkpoint
from app.engine.batch import Batch
from app.engine.inputs import Input, Messages, PromptResponse, Text
from app.engine.reward_model import RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError
from tests.families.reference import Built, Conversation

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Measured:
    """One text's ids and scores, as the service has them and as the authors do."""

    ids: list[int]
    expected_ids: list[int]
    score: float
    expected: float
    steps: list[float] | None = None
    """Of a process reward model."""

    @property
    def difference(self) -> float:
        """Relative to scores above 1."""
        return abs(self.score - self.expected) / max(1, abs(self.expected))


def load(built: Built) -> RewardModel:
    """As `serve` does it. What is refused before it is loaded is refused in the words of loading."""
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "declared": built.declared}
    source = str(built.directory)
    try:
        check_files(source, check_declarations(source, built.declared, None), trust_remote_code=False)
    except ModelRefusedError as early:
        with pytest.raises(ModelRefusedError, match=f"^{re.escape(str(early))}$"):
            load_checkpoint(source, **options)
        raise
    checkpoint = load_checkpoint(source, **options)
    model = RewardModel("helpfulness", checkpoint, max_batch_tokens=2048)
    select_plan(model)
    return model


def input_of(conversation: Conversation) -> Input:
    if conversation.text is not None:
        return Input(Text(conversation.text))
    if len(conversation.turns) == 2:
        (_, prompt), (_, response) = conversation.turns
        return Input(PromptResponse(prompt, response))
    return Input(Messages(tuple(conversation.messages)))


def measure(built: Built) -> list[Measured]:
    """All conversations, of different lengths, in one batch."""
    model = load(built)
    sequences: list[TokenSequence] = []
    for outcome in model.tokenization.encode([input_of(each) for each in built.conversations], "error"):
        if not isinstance(outcome, TokenSequence):
            raise outcome
        sequences.append(outcome)
    scores = model.score(Batch.of(sequences))
    expected_ids = [built.text(each) for each in built.conversations]
    return [
        Measured(
            [int(i) for i in sequence.token_ids],
            ids,
            scored.score,
            built.rule(ids),
            scored.steps.scores if scored.steps is not None else None,
        )
        for sequence, ids, scored in zip(sequences, expected_ids, scores, strict=True)
    ]
