"""Text that a client rendered gets the ids that the chat template gives to the same conversation."""

from typing import Any

import pytest

from app.engine.inputs import Input, Messages, RenderedChat, Rollout, Text
from app.engine.text_rules import TextRules
from app.engine.tokenization import Tokenization
from app.errors import InvalidInputError
from tests.conversations import CONVERSATIONS, SHAPES, TOKENIZERS, Shape, tokenizer_of
from tests.models import make_tokenizer

VOCAB_SIZE = 400


def outcome(own: Tokenization, form: Any) -> list[int] | str:
    """The token ids, or the error without its numbers."""
    (only,) = own.encode([Input(form, 0, "it")], "left")
    return only.message if isinstance(only, InvalidInputError) else [int(i) for i in only.token_ids]


PAIRS = [
    (shape, kind)
    for shape in SHAPES
    for kind, options in TOKENIZERS.items()
    if options.get("bos_token", "") is not None or "bos_token" not in SHAPES[shape].template
]
"""A template that writes a BOS comes with a tokenizer that has one."""


@pytest.mark.parametrize(("shape", "kind"), PAIRS)
def test_rendered_text_gets_the_ids_of_the_template(shape: str, kind: str) -> None:
    tokenizer = tokenizer_of(SHAPES[shape], **TOKENIZERS[kind])
    own = Tokenization(tokenizer, 512, VOCAB_SIZE)
    for conversation, messages in CONVERSATIONS.items():
        content = SHAPES[shape].content_lead + messages[-1]["content"]
        expected = outcome(own, Messages((*messages[:-1], {"role": "assistant", "content": content})))
        if shape == "gemma" and messages[0]["role"] == "system":
            assert "System role not supported" in expected  # its trainer cannot render it either
            continue
        assert isinstance(expected, list), (conversation, expected)
        for name, form in arrivals(tokenizer, SHAPES[shape], messages).items():
            assert outcome(own, form) == expected, (conversation, name)


def arrivals(tokenizer: Any, shape: Shape, messages: list[dict[str, str]]) -> dict[str, RenderedChat | Rollout]:
    """A conversation as trainers and clients send it."""
    response, bos = messages[-1]["content"], tokenizer.bos_token or ""
    end_of_turn = shape.end_of_turn or tokenizer.eos_token
    content = shape.content_lead + response
    whole = tokenizer.apply_chat_template([*messages[:-1], {"role": "assistant", "content": content}], tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True) + shape.lead
    found: dict[str, RenderedChat | Rollout] = {
        "rendered whole": RenderedChat(whole),
        "rendered whole, without its BOS (verl)": RenderedChat(whole.removeprefix(bos)),
        "rendered whole, without special tokens (OpenRLHF)": RenderedChat(whole, add_special_tokens=False),
        "rendered whole, its BOS twice": RenderedChat(bos + whole),
        "ends at the end of turn (OpenRLHF, slime, AReaL)": RenderedChat(prompt + response + end_of_turn),
        "messages, and a response with its end of turn (slime)": Rollout(tuple(messages[:-1]), content + end_of_turn),
        "messages, and a response without": Rollout(tuple(messages[:-1]), content),
    }
    if end_of_turn not in response:  # else nothing says where the turn ends
        found["cut before its end of turn"] = RenderedChat(prompt + response)
    return found


def ids(own: Tokenization, form: Any) -> list[int]:
    found = outcome(own, form)
    assert isinstance(found, list), found
    return found


def test_without_closing_the_text_ends_as_it_was_sent_and_has_one_bos() -> None:
    shape = SHAPES["chatml with bos"]
    own = Tokenization(tokenizer_of(shape, add_bos=False), 512, VOCAB_SIZE)
    text = "<|im_start|>user\nHow long?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>"
    expected = ids(own, Text(f"<s>{text}", add_special_tokens=False))
    for sent in (text, f"<s>{text}", f"<s><s>{text}"):
        assert ids(own, RenderedChat(sent, close=False)) == expected
    prompt = ({"role": "user", "content": "How long?"},)
    assert ids(own, Rollout(prompt, "Two.<|im_end|>", close=False)) == expected
    assert ids(own, RenderedChat(text)) == ids(own, Text(f"<s>{text}\n", add_special_tokens=False))


@pytest.mark.parametrize(
    "text",
    [
        "Two minutes.",
        "Two minutes.<|im_end|>",
        "<|im_start|>user\nHow long?<|im_end|>\n",
        "<|im_start|>user\nHow long?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\nThanks.<|im_end|>\n",
        "USER: How long? ASSISTANT: Two.",
    ],
)
def test_what_does_not_end_in_a_response_of_this_template_is_not_closed(text: str) -> None:
    own = Tokenization(tokenizer_of(SHAPES["chatml"]), 512, VOCAB_SIZE)
    assert ids(own, RenderedChat(text)) == ids(own, Text(text))


def test_a_generation_prompt_that_the_rules_append_is_there_once() -> None:
    rules = TextRules(generation_prompt=True)
    tokenizer = tokenizer_of(SHAPES["chatml"])
    own = Tokenization(tokenizer, 512, VOCAB_SIZE, rules)
    messages = CONVERSATIONS["multi-turn"]
    expected = ids(own, Messages(tuple(messages)))
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
    for sent in (whole, whole.removesuffix("\n"), whole + "<|im_start|>assistant\n"):
        assert ids(own, RenderedChat(sent)) == expected


def test_without_a_template_rendered_text_is_text() -> None:
    own = Tokenization(make_tokenizer(template=None), 512, VOCAB_SIZE)
    assert ids(own, RenderedChat("a<|im_end|>")) == ids(own, Text("a<|im_end|>"))
    assert "no chat template" in str(outcome(own, Rollout(({"role": "user", "content": "a"},), "b", close=False)))
