"""Encoders take a prompt and a response as a pair, with the tokenizer's own separators and token types."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from app.engine.batch import Batch
from app.engine.inputs import Input, Messages, PromptResponse, Text, TokenIds, Truncation
from app.engine.reward_model import RewardModel
from app.engine.sequence import TokenSequence
from tests.engine.loaded import load
from tests.models import make_tokenizer

PROMPT, RESPONSE = "How do I pick a lock?", "I can't help with that."
NAMES = ["input_ids", "token_type_ids", "attention_mask"]


def pair_tokenizer(*, has_types: bool = True) -> PreTrainedTokenizerFast:
    """As BERT's: [CLS] first [SEP] second [SEP], of types 0 and 1."""
    names = NAMES if has_types else ["input_ids", "attention_mask"]
    tokenizer = make_tokenizer(
        template=None, add_bos=False, cls_token="<s>", sep_token="</s>", bos_token=None, model_input_names=names
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@pytest.fixture(scope="module", params=["bert", "deberta", "without types"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    family = "bert" if request.param == "without types" else request.param
    tokenizer = pair_tokenizer(has_types=request.param != "without types")
    types = {"type_vocab_size": 2} if family == "bert" else {}
    return load(tmp_path_factory.mktemp(family), family, tokenizer=tokenizer, **types)


def theirs(model: RewardModel, prompt: str, response: str) -> float:
    """transformers' own tokenizer and forward."""
    tokenizer: Any = model.checkpoint.tokenizer
    with torch.inference_mode():
        return float(model.checkpoint.net(**tokenizer(prompt, response, return_tensors="pt")).logits[0, 0])


def sequence_of(model: RewardModel, form: Any, truncation: Truncation = "error") -> TokenSequence:
    outcome = model.tokenization.encode([Input(form)], truncation)[0]
    assert isinstance(outcome, TokenSequence), outcome
    return outcome


def ours(model: RewardModel, *forms: Any) -> list[float]:
    return [scored.score for scored in model.score(Batch.of([sequence_of(model, form) for form in forms]))]


def test_a_pair_has_transformers_score_alone_and_beside_others(model: RewardModel) -> None:
    expected = theirs(model, PROMPT, RESPONSE)
    turns = ({"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE})
    ids = model.checkpoint.tokenizer(PROMPT, RESPONSE)["input_ids"]
    forms = [PromptResponse(PROMPT, RESPONSE), Messages(turns), TokenIds(ids), Text("a much longer text " * 9)]
    together = ours(model, *forms)
    alone = [ours(model, form)[0] for form in forms]
    for score in (*together[:3], *alone[:3], model.reference_score(sequence_of(model, forms[0]))):
        assert score == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))


def test_a_pair_is_not_its_two_texts_in_one(model: RewardModel) -> None:
    joined = sequence_of(model, Text(PROMPT + RESPONSE))
    assert sequence_of(model, PromptResponse(PROMPT, RESPONSE)).key != joined.key


@pytest.mark.parametrize("truncation", ["prompt", "left", "right"])
def test_a_pair_over_the_limit_keeps_its_separators(model: RewardModel, truncation: Truncation) -> None:
    sequence = sequence_of(model, PromptResponse("tea " * 900, RESPONSE), truncation)
    ids = list(sequence.token_ids)
    assert len(ids) == model.tokenization.max_length
    assert sequence.truncated
    assert (ids[0], ids[-1], ids.count(2)) == (1, 2, 2)
    if truncation != "right":
        assert model.checkpoint.tokenizer.decode(ids[ids.index(2) + 1 : -1]) == RESPONSE


def test_an_encoder_with_a_chat_template_follows_it(tmp_path: Path) -> None:
    model = load(tmp_path, "bert", tokenizer=make_tokenizer())
    turns = ({"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE})
    assert sequence_of(model, PromptResponse(PROMPT, RESPONSE)).key == sequence_of(model, Messages(turns)).key
