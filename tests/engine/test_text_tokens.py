"""Long texts: cut before they are tokenized, to the same tokens; and tokenizers that fail as foreign code does."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from app.engine import text_tokens
from app.engine.inputs import Input, PromptResponse, Text, Truncation
from app.engine.sequence import TokenSequence
from app.engine.tokenization import Tokenization
from app.errors import InvalidInputError
from tests.models import SPECIAL, TEXT, VOCAB_SIZE, make_tokenizer

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}| ", r"\p{N}{1,3}| ")


def with_pattern(pattern: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE behind the regular expression of a family's pre-tokenizer."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


TRUNCATIONS: tuple[Truncation, ...] = ("error", "left", "right")
FAMILIES = {"gpt2": make_tokenizer(template=None), "qwen2": with_pattern(QWEN2), "llama3": with_pattern(LLAMA3)}


def encode(tokenization: Tokenization, form: Text | PromptResponse, truncation: Truncation) -> Any:
    return tokenization.encode([Input(form)], truncation)[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("truncation", ["left", "right"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_a_long_text_has_the_tokens_that_it_has_when_it_is_tokenized_whole(
    family: str, truncation: Truncation, seed: int
) -> None:
    """With chunks of a few hundred characters; odd characters, digits and runs of spaces among them."""
    rng = random.Random(seed)  # noqa: S311 - a text, not a secret
    words = [
        *[
            "The",
            "quick",
            "brown",
            "fox",
            "can't",
            "jump",
            "12345",
            "over,",
            "the",
            "lazy...",
            "dogs\n\n",
            "and",
            "ünïcödé",
            "茶",
            "12",
            "!!",
        ],
        "  ",
        "\t\t",
    ]
    text = " ".join(rng.choice(words) for _ in range(1500))
    tokenization = Tokenization(FAMILIES[family], 200, VOCAB_SIZE)
    whole = encode(tokenization, Text(text), truncation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_tokens, "CHUNK_CHARS", 512)
        patch.setattr(text_tokens, "WINDOW_CHARS", 64)
        patch.setattr("app.engine.tokenization.LONG_CHARS", 1024)
        cut = encode(tokenization, Text(text), truncation)
    assert isinstance(whole, TokenSequence)
    assert isinstance(cut, TokenSequence)
    assert cut.key == whole.key
    assert cut.truncated


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("character", [" ", "\t", "a", "1", "!", "\n"])
def test_of_millions_of_one_character_few_are_tokenized(
    family: str, character: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spaces without end make the pre-tokenizers of Qwen2 and Llama 3 panic, and anything without end takes seconds."""
    tokenization = Tokenization(FAMILIES[family], 512, VOCAB_SIZE)
    encode_all, num_chars = tokenization._encoder._encode, 0

    def count(texts: list[str]) -> list[list[int]]:
        nonlocal num_chars
        num_chars += sum(map(len, texts))
        return encode_all(texts)

    monkeypatch.setattr(tokenization._encoder, "_encode", count)
    text = Text("Well: " + character * 12_000_000)
    for truncation in TRUNCATIONS:
        outcome = encode(tokenization, text, truncation)
        assert isinstance(outcome, InvalidInputError) or outcome.num_tokens == 512
    assert num_chars < 1_000_000


def test_a_long_response_that_fits_is_kept_and_one_that_does_not_is_refused() -> None:
    tokenization = Tokenization(FAMILIES["gpt2"], 100, VOCAB_SIZE)
    prompt = "How do I pick a lock? " * 5000
    kept = encode(tokenization, PromptResponse(prompt, "I can't help with that."), "prompt")
    assert isinstance(kept, TokenSequence)
    assert str(FAMILIES["gpt2"].decode(list(kept.token_ids))).endswith("I can't help with that.")
    refused = encode(tokenization, PromptResponse(prompt, "No, and no again. " * 5000), "prompt")
    assert isinstance(refused, InvalidInputError)
    assert "response alone" in refused.message


class PanicError(BaseException):
    """As a panic in Rust reaches Python: `except Exception` lets it pass."""


def test_a_text_on_which_the_tokenizer_panics_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenization = Tokenization(FAMILIES["gpt2"], 100, VOCAB_SIZE)
    encode_all = tokenization._encoder._encode

    def panic(texts: list[str]) -> list[list[int]]:
        if any("panic" in text for text in texts):
            raise PanicError("index out of bounds")
        return encode_all(texts)

    monkeypatch.setattr(tokenization._encoder, "_encode", panic)
    inputs = [Input(Text(text), i, f"items[{i}]") for i, text in enumerate(["tea", "panic", "more tea"])]
    good, bad, other = tokenization.encode(inputs, "error")
    assert isinstance(good, TokenSequence)
    assert isinstance(other, TokenSequence)
    assert isinstance(bad, InvalidInputError)
    assert (bad.item, bad.message) == (1, "items[1] cannot be tokenized (index out of bounds); change its text")
