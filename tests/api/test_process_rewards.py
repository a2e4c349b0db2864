"""/ppo-reward with rewards at the steps of a response, from the items or from a process reward model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

import app.service
from app.checkpoints.loading import load_checkpoint
from app.engine.checkpoint import Checkpoint
from app.engine.head import Position
from reward_client import Limits, RewardClient
from tests.api.asking import ask, assert_error
from tests.conftest import Serve

STEP, STEP_ID = "<|im_end|>", 4
TEXTS = [f"Question {i}?{STEP} First{' so' * i}.{STEP} Then.{STEP} Done" for i in range(5)]
NONE = {"whiten": {"mode": "none"}}
LOGPROBS = {"policy_logprobs": [-0.5, -0.4, -0.3, -0.2], "reference_logprobs": [-0.6, -0.6, -0.6, -0.6]}
SCORED = {"safety_score": 1.0, "helpfulness_score": 2.0, **LOGPROBS}
STEPS = {"process_rewards": [0.5, -0.25], "step_ends": [1, 3]}


@pytest.fixture(scope="module")
def client(serve: Serve, safety_dir: Path, helpfulness_dir: Path) -> Iterator[httpx.Client]:
    """A server whose helpfulness model reads a score at every STEP."""

    def load(source: str, **options: Any) -> Checkpoint:
        checkpoint = load_checkpoint(source, **options)
        if source != str(helpfulness_dir):
            return checkpoint
        return replace(checkpoint, head=replace(checkpoint.head, position=Position("at", (STEP_ID,), name="the step")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app.service, "load_checkpoint", load)
        with serve(safety_model=str(safety_dir), helpfulness_model=str(helpfulness_dir)) as client:
            yield client


@pytest.fixture(scope="module")
def items(helpfulness_dir: Path) -> list[dict[str, Any]]:
    """The TEXTS as token ids, each with logprobs of what follows its first step token."""
    tokenizer = AutoTokenizer.from_pretrained(helpfulness_dir)
    made = []
    for text in TEXTS:
        token_ids: Any = tokenizer(text)["input_ids"]
        n = len(token_ids) - token_ids.index(STEP_ID) - 1
        made.append({"input_ids": token_ids, "policy_logprobs": [-0.5] * n, "reference_logprobs": [-0.6] * n})
    return made


def reward(client: httpx.Client, *items: dict[str, Any], **options: Any) -> dict[str, Any]:
    return ask(client, "/ppo-reward", {"items": list(items), "token_rewards": True, **options})


def test_an_items_own_process_rewards_are_added_at_its_steps(client: httpx.Client) -> None:
    options = {**NONE, "beta": 0.1}
    (plain,) = reward(client, SCORED, **options)["results"]
    (result,) = reward(client, SCORED | STEPS, **options)["results"]
    assert result["process_rewards"] == STEPS["process_rewards"]
    assert result["step_ends"] == STEPS["step_ends"]
    assert result["process_reward"] == 0.25
    assert result["reward"] == pytest.approx(plain["reward"] + 0.25)
    added = [a - b for a, b in zip(result["token_rewards"], plain["token_rewards"], strict=True)]
    assert added == pytest.approx([0, 0.5, 0, -0.25])
    assert sum(result["token_rewards"]) == pytest.approx(result["reward"])
    (halved,) = reward(client, SCORED | STEPS, **options, process={"weight": 0.5})["results"]
    assert halved["process_reward"] == 0.125
    assert {"process_rewards", "process_reward"}.isdisjoint(plain)


def test_items_with_and_without_steps_go_together(client: httpx.Client) -> None:
    with_steps, without = reward(client, SCORED | STEPS, SCORED, **NONE)["results"]
    assert with_steps["process_reward"] == 0.25
    assert without["process_reward"] is without["process_rewards"] is without["step_ends"] is None
    assert with_steps["reward"] == pytest.approx(without["reward"] + 0.25)


@pytest.mark.parametrize("on", ["score", "probability"])
def test_a_process_reward_models_steps_of_the_response_are_the_rewards(
    client: httpx.Client, items: list[dict[str, Any]], on: str
) -> None:
    answer = reward(client, *items, **NONE, process={"model": "helpfulness", "on": on, "weight": 2.0})
    ids = [{"input_ids": item["input_ids"]} for item in items]
    scored = ask(client, "/score", {"items": ids, "models": ["helpfulness"]})["results"]
    name = {"score": "step_scores", "probability": "step_probabilities"}[on]
    for item, result, score in zip(items, answer["results"], scored, strict=True):
        entry = score["scores"]["helpfulness"]
        assert len(entry["step_scores"]) == 3  # the first ends in the prompt
        num_prompt_tokens = len(item["input_ids"]) - len(item["policy_logprobs"])
        assert result["process_rewards"] == pytest.approx(entry[name][1:])
        assert result["step_ends"] == [position - num_prompt_tokens for position in entry["step_positions"][1:]]
        assert result["process_reward"] == pytest.approx(2 * sum(entry[name][1:]))
        assert sum(result["token_rewards"]) == pytest.approx(result["reward"])


def test_a_text_says_where_its_steps_end(client: httpx.Client) -> None:
    item = {"text": TEXTS[0], **LOGPROBS, "step_ends": [0, 1, 3]}
    (result,) = reward(client, item, **NONE, process={"model": "helpfulness"})["results"]
    assert (result["step_ends"], len(result["process_rewards"])) == ([0, 1, 3], 3)


def test_a_batch_that_is_split_gets_the_same_rewards(client: httpx.Client, items: list[dict[str, Any]]) -> None:
    process = {"model": "helpfulness", "on": "probability", "weight": 0.5}
    whole = reward(client, *items, process=process)["results"]
    with RewardClient(str(client.base_url), limits=Limits(max_items=2)) as own:
        parts = own.ppo_reward(items, process=process, token_rewards=True).results
        given = own.ppo_reward([SCORED | STEPS, SCORED, SCORED | STEPS], process={"weight": 3.0}).results
    for one, other in zip(parts, whole, strict=True):
        assert one.reward == pytest.approx(other["reward"])
        assert one.token_rewards == pytest.approx(other["token_rewards"])
        assert (one.process_rewards, one.step_ends) == (other["process_rewards"], other["step_ends"])
    assert [result.process_reward for result in given] == [0.75, None, 0.75]


def test_a_large_batch_takes_the_same_path(client: httpx.Client) -> None:
    """In the worker process."""
    n = 40_000
    long = {
        "policy_logprobs": [-0.5] * n,
        "reference_logprobs": [-0.5] * n,
        "process_rewards": [1.0],
        "step_ends": [n - 1],
    }
    (result,) = reward(client, SCORED | long, **NONE)["results"]
    assert result["token_rewards"][-1] == pytest.approx(2.0 + 1.0 if result["selected"] == "helpfulness" else 1.0 + 1.0)


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"process_rewards": [1.0]}, {}, "has 1 process_rewards and no step_ends; send one end per step"),
    ({"process_rewards": [1.0], "step_ends": [1, 2]}, {}, "has 1 process_rewards and 2 step_ends"),
    ({"step_ends": [1]}, {}, "has step_ends but no process_rewards"),
    ({"process_rewards": [1.0], "step_ends": [4]}, {}, "items[0].step_ends[0] is 4 and the response has 4 tokens"),
    ({"process_rewards": [1.0], "step_ends": [-1]}, {}, "items[0].step_ends[0] is -1"),
    ({**STEPS, "step_ends": [3, 1]}, {}, "has 1 after 3; list the steps in order"),
    ({**STEPS, "step_ends": [1, 1]}, {}, "has 1 after 1"),
    ({**STEPS, "mask": [1, 0, 1, 1]}, {}, "has a step that ends at token 1, which the mask does not count"),
    ({**STEPS, "policy_logprobs": None, "reference_logprobs": None}, {}, "has no logprobs"),
    ({}, {"process": {"model": "helpfulness"}}, "has scores, so process.model does not score it"),
]


@pytest.mark.parametrize(("fields", "options", "says"), BAD)
def test_steps_that_do_not_fit_are_an_error(
    client: httpx.Client, fields: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    response = client.post("/ppo-reward", json={"items": [SCORED | fields], **NONE, **options})
    assert_error(response, 422, "invalid_input", item=0, says=says)


@pytest.mark.parametrize(
    ("item", "process", "says"),
    [
        ({"text": TEXTS[0], **LOGPROBS}, {"model": "helpfulness"}, "only for input_ids"),
        (
            {"text": TEXTS[0], **LOGPROBS, "step_ends": [1]},
            {"model": "helpfulness"},
            "1 step_ends, but the model reads 3 steps",
        ),
        ({"text": TEXTS[0], **LOGPROBS, "step_ends": [1]}, {"model": "safety"}, "the safety model reads one score"),
        (SCORED, {"weight": 2.0}, "process is given, but no item has process_rewards"),
        (SCORED | STEPS, {"on": "probability"}, "on probability but no model"),
        (SCORED | {"process_rewards": [1e308, 1e308], "step_ends": [0, 1]}, {"weight": 10.0}, "overflows float64"),
    ],
)
def test_a_process_that_cannot_be_is_an_error(
    client: httpx.Client, item: dict[str, Any], process: dict[str, Any], says: str
) -> None:
    response = client.post("/ppo-reward", json={"items": [item], **NONE, "process": process})
    assert response.status_code == 422
    assert says in response.json()["error"]["message"]
