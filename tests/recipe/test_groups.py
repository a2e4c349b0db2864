"""The rows that the recipe trains on have the chat template's tokens, within its limits."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from models.recipe.groups import MAX_PROMPT, MAX_RESPONSE, Group, Response, row_of

TRUNK = Path(__file__).resolve().parents[2] / "models" / "trunk"
GROUPS = [
    Group("a", (("user", "How long does tea steep?"),), (Response("Two minutes."), Response("No idea, sorry."))),
    Group("a", (("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")), (Response("Goodbye, and thanks."),)),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TRUNK)


@pytest.mark.parametrize("group", GROUPS)
def test_the_tokens_are_those_of_the_chat_template(group: Group, tokenizer: Any) -> None:
    turns = [{"role": role, "content": content} for role, content in group.turns]
    for tokens, response in zip(row_of(group, tokenizer).sequences, group.responses, strict=True):
        conversation = [*turns, {"role": "assistant", "content": response.text}]
        assert tokens.tolist() == tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"]


def test_long_texts_keep_the_prompts_end_and_the_closing_tokens(tokenizer: Any) -> None:
    row = row_of(Group("a", (("user", "tea " * 500),), (Response("kettle " * 500),)), tokenizer)
    assert (row.segments == 0).sum() == MAX_PROMPT
    assert (row.segments == 1).sum() == MAX_RESPONSE
    assert tokenizer.decode(row.ids[-2:]) == "<|im_end|>\n"
