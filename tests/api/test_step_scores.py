"""A process reward model's scores of every step, over HTTP, compared with the plain trunk and head."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import app.service
from app.checkpoints.loading import load_checkpoint
from app.engine.checkpoint import Checkpoint
from app.engine.head import Position
from reward_client import RewardClient
from tests.api.asking import TEA, ask, assert_error
from tests.conftest import Serve
from tests.models import make_model

STEP = "<|im_end|>"
STEP_ID = 4
SOLUTION = f"First, boil water.{STEP} Then add tea.{STEP} Wait three minutes.{STEP} Done"


@pytest.fixture(scope="module")
def client(serve: Serve, safety_dir: Path, helpfulness_dir: Path) -> Iterator[httpx.Client]:
    """A server whose helpfulness model reads a score at every STEP."""

    def load(source: str, **options: Any) -> Checkpoint:
        checkpoint = load_checkpoint(source, **options)
        if source != str(helpfulness_dir):
            return checkpoint
        position = Position("at", (STEP_ID,), name=f"token {STEP!r}")
        return replace(checkpoint, head=replace(checkpoint.head, position=position))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app.service, "load_checkpoint", load)
        with serve(safety_model=str(safety_dir), helpfulness_model=str(helpfulness_dir)) as client:
            yield client


def expected_steps(directory: Path, text: str) -> tuple[list[float], list[int]]:
    """The head's output at every STEP, by a plain forward in float32, and the positions."""
    token_ids: Any = AutoTokenizer.from_pretrained(directory)(text)["input_ids"]
    net = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        outputs = net.score(net.model(torch.tensor([token_ids])).last_hidden_state)[0, :, 0]
    positions = [i for i, token in enumerate(token_ids) if token == STEP_ID]
    return outputs[positions].tolist(), positions


def steps_of(client: httpx.Client, **options: Any) -> dict[str, Any]:
    answer = ask(client, "/score", {"items": [{"text": SOLUTION}], "models": ["helpfulness"], **options})
    entry: dict[str, Any] = answer["results"][0]["scores"]["helpfulness"]
    return entry


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_process_reward_model_gives_every_steps_score(client: httpx.Client, helpfulness_dir: Path) -> None:
    scores, positions = expected_steps(helpfulness_dir, SOLUTION)
    assert len(scores) == 3
    entry = steps_of(client, step_scores=True)
    assert entry["step_scores"] == pytest.approx(scores, rel=1e-5, abs=1e-5)
    assert entry["step_probabilities"] == pytest.approx([sigmoid(score) for score in scores], abs=1e-5)
    assert entry["step_positions"] == positions
    assert entry["score"] == entry["step_scores"][-1]


def test_it_gives_them_unless_told_not_to(client: httpx.Client) -> None:
    assert steps_of(client)["step_scores"] == steps_of(client, step_scores=True)["step_scores"]
    assert set(steps_of(client, step_scores=False)) == {"score", "probability", "num_tokens", "truncated"}


@pytest.mark.parametrize("reduce", ["min", "last", "mean", "product"])
def test_reduce_makes_the_score_of_the_steps(client: httpx.Client, reduce: str) -> None:
    plain = steps_of(client)
    probabilities = plain["step_probabilities"]
    expected = {
        "min": min(probabilities),
        "last": probabilities[-1],
        "mean": sum(probabilities) / 3,
        "product": math.prod(probabilities),
    }[reduce]
    entry = steps_of(client, reduce=reduce)
    assert entry["probability"] == pytest.approx(expected, rel=1e-9)
    assert entry["probability"] == pytest.approx(sigmoid(entry["score"]), rel=1e-12)
    assert entry["step_scores"] == plain["step_scores"]
    assert steps_of(client, reduce=reduce, step_scores=False)["score"] == entry["score"]


def test_token_scores_stay_the_scores_after_every_token(client: httpx.Client) -> None:
    entry = steps_of(client, token_scores=True, reduce="min")
    assert len(entry["token_scores"]) == entry["num_tokens"]
    assert [entry["token_scores"][i] for i in entry["step_positions"]] == entry["step_scores"]
    assert entry["score"] == min(entry["step_scores"])


def test_steps_do_not_depend_on_the_batch_nor_on_the_prefix_cache(client: httpx.Client) -> None:
    before = steps_of(client)
    texts = [
        {"text": SOLUTION},
        {"text": SOLUTION + f" and drink.{STEP}"},
        {"text": f"Other{STEP}"},
        {"text": SOLUTION},
    ]
    answer = ask(client, "/score", {"items": texts, "models": ["helpfulness"]})
    entries = [result["scores"]["helpfulness"] for result in answer["results"]]
    assert entries[0] == entries[3] == before
    assert entries[1]["step_scores"][:3] == before["step_scores"]
    assert len(entries[1]["step_scores"]) == 4


def test_a_text_without_a_step_is_an_error_that_names_the_token_and_fails_nobody_else(client: httpx.Client) -> None:
    body = {"items": [{"text": SOLUTION}, {"text": "no step"}], "models": ["helpfulness"]}
    response = client.post("/score", json=body)
    assert_error(response, 422, "invalid_input", item=1, says=f"items[1] has no token {STEP!r}; the helpfulness model")
    assert steps_of(client)["step_scores"]


def test_the_other_model_answers_beside_it_and_has_no_steps(client: httpx.Client) -> None:
    for options in ({}, {"step_scores": True}, {"reduce": "min"}):
        answer = ask(client, "/score", {"items": [{"text": SOLUTION}], **options})
        entries = answer["results"][0]["scores"]
        assert set(entries["safety"]) == {"score", "probability", "num_tokens", "truncated"}
        assert len(entries["helpfulness"]["step_scores"]) == 3


@pytest.mark.parametrize("option", [{"step_scores": True}, {"reduce": "mean"}])
def test_a_model_that_is_named_and_reads_no_steps_is_an_error(client: httpx.Client, option: dict[str, Any]) -> None:
    for models in (["safety"], ["helpfulness", "safety"]):
        response = client.post("/score", json={"items": [TEA], "models": models, **option})
        assert_error(
            response, 422, "invalid_input", says="the safety model reads one score; drop the option, or declare"
        )


def test_other_routes_read_its_declared_score(client: httpx.Client) -> None:
    pair = {"prompt": "Tea?", "chosen": SOLUTION, "rejected": f"Coffee.{STEP}", "rating": "better"}
    assert ask(client, "/compare", {"pairs": [pair]})["results"][0]["chosen_score"]
    assert client.get("/ready").status_code == 200


def test_the_python_client_has_the_steps(client: httpx.Client) -> None:
    entry = steps_of(client, reduce="product")
    with RewardClient(str(client.base_url)) as own:
        (result,) = own.score([{"text": SOLUTION}], models=["helpfulness"], step_scores=True, reduce="product").results
    scored = result.scores["helpfulness"]
    assert scored.score == entry["score"]
    assert (scored.step_scores, scored.step_positions) == (entry["step_scores"], entry["step_positions"])
    assert scored.step_probabilities == entry["step_probabilities"]


def test_vllms_token_classify_gives_the_steps(client: httpx.Client) -> None:
    body = {"model": "helpfulness", "input": SOLUTION, "task": "token_classify"}
    data = ask(client, "/pooling", body)["data"][0]["data"]
    assert data == [[score] for score in steps_of(client)["step_scores"]]


def test_a_score_that_is_a_probability_is_its_own(serve: Serve, tmp_path: Path) -> None:
    make_model(tmp_path)
    (tmp_path / "reward.json").write_text(json.dumps({"position": {"at": STEP}, "map": {"sigmoid": True}}))
    logits, _ = expected_steps(tmp_path, SOLUTION)
    probabilities = [sigmoid(logit) for logit in logits]
    with serve(safety_model=str(tmp_path), helpfulness_model="") as client:
        body = {"items": [{"text": SOLUTION}], "reduce": "product"}
        entry = ask(client, "/score", body)["results"][0]["scores"]["safety"]
        threshold = client.post(
            "/ppo-reward", json={"items": [{"text": SOLUTION, "is_safety": True}], "whiten": {"mode": "none"}}
        )
        classified = ask(client, "/pooling", {"input": SOLUTION, "task": "token_classify", "use_activation": True})
    assert entry["step_scores"] == entry["step_probabilities"] == pytest.approx(probabilities, abs=1e-5)
    assert entry["score"] == entry["probability"] == pytest.approx(math.prod(probabilities), abs=1e-5)
    assert_error(threshold, 422, "invalid_input", says="send combine.threshold_on score")
    assert [row[0] for row in classified["data"][0]["data"]] == pytest.approx(probabilities, abs=1e-5)
