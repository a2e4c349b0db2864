"""Classifiers of encoder-decoders (T5, BART): the scores of transformers, and what a text without an end-of-sequence token is told."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from app.checkpoints.loading import load_checkpoint
from app.checkpoints.max_length import UNSTATED_MAX_LENGTH
from tests.api.compat.support import native
from tests.checkpoints.encoder_decoders import SEQ2SEQ, make_encoder_decoder
from tests.conftest import Serve
from tests.engine.loaded import load_from
from tests.models import make_model, make_tokenizer

TEXTS = ["tea", "How long should green tea steep? Two minutes.", "tea " * 60]
EOS = 2


class Reference:
    """The checkpoint in transformers' own class."""

    def __init__(self, directory: Path) -> None:
        self.net = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)

    def score(self, token_ids: list[int]) -> float:
        with torch.inference_mode():
            return float(self.net(torch.tensor([token_ids])).logits[0, 0])


def near(score: float) -> Any:
    return pytest.approx(score, abs=1e-5 * max(1, abs(score)))


def post_items(client: httpx.Client, *items: dict[str, Any]) -> httpx.Response:
    return client.post("/score", json={"items": [*items]})


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_scores_are_those_of_transformers_own_class(serve: Serve, tmp_path: Path, family: str) -> None:
    """Also in one batch with a text that has an end-of-sequence token of its own, which the class refuses in a batch."""
    directory = make_encoder_decoder(tmp_path, family)
    reference, tokenizer = Reference(directory), AutoTokenizer.from_pretrained(directory)
    texts = [*TEXTS, "one</s> two"]
    with serve(safety_model="", helpfulness_model=str(directory)) as client:
        results = post_items(client, *({"text": text} for text in texts)).json()["results"]
        for text, result in zip(texts, results, strict=True):
            ids = tokenizer(text)["input_ids"]
            assert ids[-1] == EOS
            assert result["scores"]["helpfulness"]["score"] == near(reference.score(ids))
            assert native(client, {"input_ids": ids}) == native(client, {"text": text})
        pair = tokenizer("Green tea?", "Two minutes.")["input_ids"]
        answer = post_items(client, {"prompt": "Green tea?", "response": "Two minutes."}).json()
        assert answer["results"][0]["scores"]["helpfulness"]["score"] == near(reference.score(pair))
        assert client.get("/info").json()["models"]["helpfulness"]["path"] == "single"


def test_an_input_without_the_end_of_sequence_token_is_named_and_the_model_goes_on(
    serve: Serve, tmp_path: Path
) -> None:
    directory = make_encoder_decoder(tmp_path, "t5")
    with serve(safety_model="", helpfulness_model=str(directory)) as client:
        response = post_items(client, {"text": "tea"}, {"input_ids": [9, 10, 11]})
        error = response.json()["error"]
        assert (response.status_code, error["item"]) == (422, 1)
        assert error["message"] == (
            "items[1] has no end-of-sequence token </s>; the helpfulness model reads its score there, so send a text that "
            'has it, or declare {"text": {"add_eos": true}} in reward.json'
        )
        assert post_items(client, {"text": "tea"}).status_code == 200


def test_a_tokenizer_that_adds_no_end_can_be_told_to(serve: Serve, tmp_path: Path) -> None:
    directory = make_encoder_decoder(tmp_path, "bart", add_eos=False)
    settings = {"safety_model": "", "helpfulness_model": str(directory)}
    with serve(**settings) as client:
        assert '{"text": {"add_eos": true}}' in post_items(client, {"text": "tea"}).json()["error"]["message"]
    (directory / "reward.json").write_text(json.dumps({"text": {"add_eos": True}}))
    ids = AutoTokenizer.from_pretrained(directory)("tea")["input_ids"]
    with serve(**settings) as client:
        score = post_items(client, {"text": "tea"}).json()["results"][0]["scores"]["helpfulness"]["score"]
    assert score == near(Reference(directory).score([*ids, EOS]))


def test_a_class_that_reads_the_last_token_takes_texts_without_an_end(tmp_path: Path) -> None:
    model = load_from(make_encoder_decoder(tmp_path, "t5gemma", add_eos=False))
    assert model.head.position.kind == "last"
    assert model.plan.path == "single"


@pytest.mark.parametrize(
    ("config", "tokenizer_limit", "expected", "stated_by"),
    [
        ({"n_positions": 512}, None, 512, "n_positions in config.json"),
        ({"n_positions": 512}, 1024, 1024, "model_max_length of the tokenizer"),
        ({}, None, UNSTATED_MAX_LENGTH, "REWARD_MAX_LENGTH"),
    ],
)
def test_a_checkpoint_without_positions_states_a_length_all_the_same(
    tmp_path: Path, config: dict[str, Any], tokenizer_limit: int | None, expected: int, stated_by: str
) -> None:
    options: dict[str, Any] = {} if tokenizer_limit is None else {"model_max_length": tokenizer_limit}
    checkpoint = load_checkpoint(str(make_encoder_decoder(tmp_path, "t5", config, **options)), device="cpu")
    assert checkpoint.max_length == expected
    assert checkpoint.about["max_length"].startswith(f"{expected} tokens (")
    assert stated_by in checkpoint.about["max_length"]


def test_info_says_which_file_limits_the_length(serve: Serve, tmp_path: Path) -> None:
    directory = make_model(tmp_path, tokenizer=make_tokenizer(model_max_length=100))
    with serve(safety_model="", helpfulness_model=str(directory)) as client:
        parts = client.get("/info").json()["models"]["helpfulness"]["parts"]
    assert parts["max_length"] == "100 tokens (model_max_length of the tokenizer)"
