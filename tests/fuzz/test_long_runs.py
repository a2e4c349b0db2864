"""One character over and over, under every family of pre-tokenizers: the tokens of the whole text, or an error, and soon."""

import os
import random
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from app.engine.inputs import Input, Text, Truncation
from app.engine.sequence import TokenSequence
from app.engine.tokenization import Tokenization
from app.errors import InvalidInputError
from tests.engine.test_text_tokens import FAMILIES as BYTE_LEVEL
from tests.models import SPECIAL, TEXT, VOCAB_SIZE

fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "5")),
    deadline=None,
)
CHARACTERS = [
    *" \t\n\r\x00\x7f.,_-a1A",
    "é",
    "ß",
    "漢",
    "ع",
    "\u3000",
    "\u00a0",
    "\u200d",
    "\u0301",
    "🍵",
    "👩‍👩‍👧‍👦",
    "\ufeff",
    "</s>",
    " a",
    "a ",
    "1.",
]
LIMIT = 128
SECONDS = 20
"""Of processor time, for a text of a megabyte or two, which takes about one."""


def trained(pre_tokenizer: Any, *, unigram: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram() if unigram else models.BPE(byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizer
    options: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "special_tokens": [*SPECIAL, "<unk>"], "show_progress": False}
    trainer = trainers.UnigramTrainer(unk_token="<unk>", **options) if unigram else trainers.BpeTrainer(**options)
    backend.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def word_pieces() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCAB_SIZE, special_tokens=[*SPECIAL, "<unk>"], show_progress=False)
    backend.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    **BYTE_LEVEL,
    "metaspace": trained(pre_tokenizers.Metaspace()),
    "metaspace, unigram": trained(pre_tokenizers.Metaspace(), unigram=True),
    "whitespace": trained(pre_tokenizers.WhitespaceSplit()),
    "bert": word_pieces(),
    "none": trained(pre_tokenizers.Sequence([])),
}


@pytest.mark.parametrize("family", TOKENIZERS)
@fuzzed
@given(
    character=st.sampled_from(CHARACTERS),
    num_chars=st.sampled_from([20_000, 33_000, 100_000, 400_000]),
    odd=st.none() | st.integers(0, 400_000),
    truncation=st.sampled_from(["error", "left", "right"]),
)
def test_a_run_of_one_character_is_tokenized_or_refused_soon(
    family: str, character: str, num_chars: int, odd: int | None, truncation: Truncation
) -> None:
    """`odd`: where a word interrupts the run."""
    tokenization = Tokenization(TOKENIZERS[family], LIMIT, VOCAB_SIZE)
    text = (character * (num_chars // len(character) + 1))[:num_chars]
    if odd is not None and odd < num_chars:
        text = f"{text[:odd]} tea {text[odd:]}"
    started = process_time()
    (outcome,) = tokenization.encode([Input(Text(text))], truncation)
    assert process_time() - started < SECONDS
    if isinstance(outcome, TokenSequence):
        assert outcome.num_tokens <= LIMIT
    else:
        assert isinstance(outcome, InvalidInputError)
        assert str(outcome).startswith("items[0] ")


@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("character", [" ", "\t", "\u3000", "a", "\u0301"])
def test_twelve_million_of_a_character_are_refused_or_cut_without_being_tokenized_whole(
    family: str, character: str
) -> None:
    """Ten million spaces make some pre-tokenizers panic."""
    tokenization = Tokenization(TOKENIZERS[family], LIMIT, VOCAB_SIZE)
    started = process_time()
    (outcome,) = tokenization.encode([Input(Text("tea" + character * 12_000_000))], "error")
    assert process_time() - started < SECONDS
    assert isinstance(outcome, InvalidInputError)


@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("seed", range(3))
def test_a_long_text_with_runs_in_it_has_the_tokens_of_the_whole(family: str, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a text, not a secret
    parts = [
        rng.choice(TEXT) if rng.random() < 0.6 else rng.choice(CHARACTERS) * rng.randint(1, 90) for _ in range(600)
    ]
    text = " ".join(parts)
    tokenization = Tokenization(TOKENIZERS[family], LIMIT, VOCAB_SIZE)
    whole = tokenization.tokenizer(text, add_special_tokens=False)["input_ids"]
    (first,) = tokenization.encode([Input(Text(text, add_special_tokens=False))], "right")
    (last,) = tokenization.encode([Input(Text(text, add_special_tokens=False))], "left")
    assert isinstance(first, TokenSequence)
    assert isinstance(last, TokenSequence)
    assert first.token_ids.tolist() == whole[:LIMIT]
    assert last.token_ids.tolist() == whole[-LIMIT:]
