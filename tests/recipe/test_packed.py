"""Packed rows: what a response scores in one is what it scores alone, and its tokens are the chat template's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from models.recipe.fit import run_layers
from models.recipe.packed import MAX_PROMPT, MAX_RESPONSE, Group, Response, Row, batch_of, batches_by_length, row_of
from tests.models import make_model

TRUNK = Path(__file__).resolve().parents[2] / "models" / "trunk"
GROUPS = [
    Group("a", (("user", "How long does tea steep?"),), (Response("Two minutes."), Response("No idea, sorry."))),
    Group("a", (("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")), (Response("Goodbye, and thanks."),)),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TRUNK)


def parts(row: Row) -> list[list[int]]:
    """The prompt's tokens with each response's."""
    prompt = row.ids[row.segments == 0].tolist()
    return [prompt + row.ids[row.segments == number + 1].tolist() for number in range(len(row.ends))]


@pytest.mark.parametrize("group", GROUPS)
def test_the_tokens_are_those_of_the_chat_template(group: Group, tokenizer: Any) -> None:
    turns = [{"role": role, "content": content} for role, content in group.turns]
    for tokens, response in zip(parts(row_of(group, tokenizer)), group.responses, strict=True):
        conversation = [*turns, {"role": "assistant", "content": response.text}]
        assert tokens == tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"]


def test_long_texts_keep_the_prompts_end_and_the_closing_tokens(tokenizer: Any) -> None:
    row = row_of(Group("a", (("user", "tea " * 500),), (Response("kettle " * 500),)), tokenizer)
    assert (row.segments == 0).sum() == MAX_PROMPT
    assert (row.segments == 1).sum() == MAX_RESPONSE
    assert tokenizer.decode(row.ids[-2:]) == "<|im_end|>\n"


@torch.no_grad()
def test_a_response_in_a_packed_row_has_the_state_that_it_has_alone(tmp_path: Path) -> None:
    net = AutoModelForSequenceClassification.from_pretrained(make_model(tmp_path)).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = [row_of(group, tokenizer) for group in GROUPS]
    batch = batch_of(rows)
    ids = torch.zeros_like(batch.positions)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = row.ids
    trunk = net.model
    states = run_layers(trunk, trunk.embed_tokens(ids), batch, 0, 1)
    states = trunk.norm(run_layers(trunk, states, batch, 1, len(trunk.layers)))[batch.ends]
    alone = [tokens for row in rows for tokens in parts(row)]
    expected = [trunk(torch.tensor([tokens])).last_hidden_state[0, -1] for tokens in alone]
    assert torch.allclose(states, torch.stack(expected), atol=1e-5)


def test_batches_hold_every_row_once_within_the_budget() -> None:
    rows = [Row(torch.zeros(size), torch.zeros(size), torch.zeros(size), []) for size in (5, 40, 3, 90, 20)]
    batches = batches_by_length(rows, 80)
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3, 4]
    assert all(len(batch) == 1 or len(batch) * max(len(rows[i].ids) for i in batch) <= 80 for batch in batches)
