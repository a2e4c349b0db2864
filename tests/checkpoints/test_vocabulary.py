"""A tokenizer with more ids than the model embeds is refused if ordinary texts can have them."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from app.engine.inputs import Input, Text
from app.errors import InvalidInputError, ModelRefusedError
from tests.engine.loaded import load_from
from tests.models import CHATML, VOCAB_SIZE, make_model, make_tokenizer


def with_token(token: str, template: str = CHATML) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(template=template)
    tokenizer.add_tokens([token], special_tokens=True)
    return tokenizer


def test_a_tokenizer_with_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path, vocab_size=VOCAB_SIZE - 20)
    with pytest.raises(ModelRefusedError, match="the tokenizer has ids 0 to 319, and the model embeds ids 0 to 299"):
        load_from(tmp_path)


def test_an_added_token_that_the_template_writes_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path, tokenizer=with_token("<|turn|>", "<|turn|>{{ messages[0].content }}"))
    with pytest.raises(
        ModelRefusedError, match=r"adds '<\|turn\|>', which is id 320, and the model embeds ids 0 to 319"
    ):
        load_from(tmp_path)


def test_an_added_token_that_no_ordinary_text_has_fails_only_the_texts_that_have_it(tmp_path: Path) -> None:
    model = load_from(make_model(tmp_path, tokenizer=with_token("[PAD]")))
    good, bad = model.tokenization.encode([Input(Text("Tea [PA")), Input(Text("Tea [PAD]"))], "error")
    assert not isinstance(good, InvalidInputError)
    assert isinstance(bad, InvalidInputError)
    assert "token id 320; the vocabulary has ids 0 to 319" in str(bad)
