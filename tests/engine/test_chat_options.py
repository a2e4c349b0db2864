"""A conversation's own options reach the chat template, and what it would drop in silence is an error."""

from dataclasses import replace
from typing import Any

import pytest

from app.engine.inputs import ChatOptions, Input, Messages, PromptResponse, RenderedChat, Text, TokenIds
from app.engine.tokenization import Tokenization
from app.errors import InvalidInputError, TooLongError
from tests.conversations import TOOLS
from tests.models import VOCAB_SIZE, make_tokenizer

TURNS = [{"role": "user", "content": "How long?"}, {"role": "assistant", "content": "Two minutes."}]
TOOL = {"type": "function", "function": {"name": "boil"}}


def outcome(own: Tokenization, item: Input) -> list[int] | InvalidInputError:
    (only,) = own.encode([item], "left")
    return only if isinstance(only, InvalidInputError) else [int(i) for i in only.token_ids]


@pytest.fixture(scope="module")
def own() -> Tokenization:
    return Tokenization(make_tokenizer(template=TOOLS, add_eos=True), 512, VOCAB_SIZE)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (ChatOptions(), {}),
        (ChatOptions(add_generation_prompt=True), {"add_generation_prompt": True}),
        (ChatOptions(continue_final_message=True), {"continue_final_message": True}),
        (ChatOptions(tools=(TOOL,)), {"tools": [TOOL]}),
        (
            ChatOptions(add_generation_prompt=True, template_kwargs={"enable_thinking": False}),
            {"add_generation_prompt": True, "enable_thinking": False},
        ),
    ],
)
def test_options_are_those_of_apply_chat_template(
    own: Tokenization, options: ChatOptions, given: dict[str, Any]
) -> None:
    text = str(own.tokenizer.apply_chat_template(TURNS, tokenize=False, **given))
    expected = [1, *own.tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert outcome(own, Input(Messages(tuple(TURNS), options))) == expected
    with_special_tokens = replace(options, add_special_tokens=True)
    assert outcome(own, Input(Messages(tuple(TURNS), with_special_tokens))) == [*expected, 2]


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "conversation", "return_dict", "no_such_variable"])
def test_a_variable_that_the_template_does_not_have_is_an_error(own: Tokenization, name: str) -> None:
    error = outcome(own, Input(Messages(tuple(TURNS), ChatOptions(template_kwargs={name: "x"}))))
    assert isinstance(error, InvalidInputError)
    assert name in error.message
    assert "unexpected chat template kwargs" in error.message


def test_tools_that_the_template_does_not_render_are_an_error() -> None:
    own = Tokenization(make_tokenizer(), 512, VOCAB_SIZE)
    error = outcome(own, Input(Messages(tuple(TURNS), ChatOptions(tools=(TOOL,)))))
    assert isinstance(error, InvalidInputError)
    assert "tools, which the checkpoint's chat template does not render" in error.message


@pytest.mark.parametrize(
    "form",
    [
        Text("green tea, " * 20),
        RenderedChat("green tea, " * 20),
        TokenIds([7] * 40),
        PromptResponse("tea " * 20, "Two."),
    ],
)
def test_an_inputs_own_limit_replaces_the_models(own: Tokenization, form: Any) -> None:
    whole = outcome(own, Input(form))
    assert isinstance(whole, list)
    short = outcome(own, Input(form, max_length=12))
    assert isinstance(short, list)
    assert len(short) == 12
    assert short[-1] == whole[-1]
    assert outcome(own, Input(form, max_length=10_000)) == whole
    (error,) = own.encode([Input(form, max_length=12)], "error")
    assert isinstance(error, TooLongError)
    assert "the limit is 12" in error.message
