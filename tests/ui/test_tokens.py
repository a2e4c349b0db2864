from pathlib import Path

import pytest
from transformers import AutoTokenizer

from app.engine.inputs import Input, Messages, PromptResponse, Text
from app.engine.tokenization import Tokenization
from app.ui.tokens import tokens_by
from tests.models import VOCAB_SIZE


@pytest.fixture(scope="module")
def tokenization(safety_dir: Path) -> Tokenization:
    return Tokenization(AutoTokenizer.from_pretrained(safety_dir), 512, VOCAB_SIZE)


def test_the_texts_of_the_tokens_are_the_text(tokenization: Tokenization) -> None:
    said = "Naïve 漢字 🙂: green tea"
    item = Input(PromptResponse("How long?", said))
    tokens = tokens_by(tokenization, item, "error")
    assert len(tokens.texts) == tokenization.encode([item], "error")[0].num_tokens  # type: ignore[union-attr]
    assert said in "".join(tokens.texts)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(tokens.texts)


def test_the_response_begins_where_the_prompt_ends(tokenization: Tokenization) -> None:
    tokens = tokens_by(tokenization, Input(PromptResponse("How long?", "Two minutes.")), "error")
    assert "".join(tokens.texts[tokens.num_prompt : -tokens.num_after]) == "Two minutes."
    assert "".join(tokens.texts[-tokens.num_after :]) == "<|im_end|>\n"
    turns = ({"role": "user", "content": "How long?"}, {"role": "assistant", "content": "Two minutes."})
    assert tokens_by(tokenization, Input(Messages(turns)), "error") == tokens


def test_a_text_has_no_such_place(tokenization: Tokenization) -> None:
    assert tokens_by(tokenization, Input(Text("How long? Two minutes.")), "error").num_prompt == 0
