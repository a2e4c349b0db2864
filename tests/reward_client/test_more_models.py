"""Both clients and the adapters against a service with a third model."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import httpx
import pytest

from reward_client import Limits
from reward_client.adapters.source import Choice
from reward_client.client import RewardClient
from tests.conftest import Serve
from tests.models import make_model
from tests.reward_client.conftest import Ask

ITEMS: list[dict[str, Any]] = [
    {"prompt": f"Question {i % 3}?", "response": "tea " * (i + 1), "group_id": i % 3} for i in range(12)
]
INPUTS = [{"prompt": item["prompt"], "response": item["response"]} for item in ITEMS]
PAIRS = [{"prompt": "Tea?", "chosen": "yes " * (i + 1), "rejected": "no", "rating": "better"} for i in range(12)]
SPLIT = {"limits": Limits(max_items=5)}
COMBINATIONS: list[dict[str, Any]] = [
    {"mode": "worst", "models": ["helpfulness", "maths"]},
    {"mode": "weighted", "weights": {"maths": 2.0, "safety": 1.0}},
    {"mode": "weighted", "weights": {"maths": 2.0, "safety": 1.0}, "whiten_each": True},
]


@pytest.fixture(scope="module")
def three(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    maths = make_model(tmp_path_factory.mktemp("maths"), seed=5)
    with serve(models={"maths": str(maths)}) as client:
        yield client


def close(values: list[float]) -> Any:
    return pytest.approx(values, rel=1e-9, abs=1e-9)


def test_scores_have_every_model(three: httpx.Client, ask: Ask) -> None:
    here = {"base_url": str(three.base_url)}
    scores = ask("score", INPUTS, settings=here)
    expected = three.post("/score", json={"items": INPUTS}).json()["results"]
    assert scores.of("maths") == [entry["scores"]["maths"]["score"] for entry in expected]
    assert list(scores.results[0].scores) == ["safety", "helpfulness", "maths"]


@pytest.mark.parametrize("settings", [{}, SPLIT])
def test_a_comparison_by_several_models_is_each_ones_own(
    three: httpx.Client, ask: Ask, settings: dict[str, Any]
) -> None:
    here = {"base_url": str(three.base_url)} | settings
    both = ask("compare", PAIRS, models=["maths", "safety"], settings=here)
    assert list(both.by_model) == ["maths", "safety"]
    for name, own in both.by_model.items():
        alone = ask("compare", PAIRS, model=name, settings=here)
        assert alone.by_model is None
        assert own.results == alone.results
        assert own.summary == alone.summary
    assert both.results == both.by_model["maths"].results


@pytest.mark.parametrize("mode", ["batch", "group"])
@pytest.mark.parametrize("combine", COMBINATIONS, ids=["worst", "weighted", "whitened"])
def test_rewards_of_any_models_are_those_of_one_request_however_they_were_split(
    three: httpx.Client, ask: Ask, combine: dict[str, Any], mode: str
) -> None:
    options = {"combine": combine, "whiten": {"mode": mode}}
    whole = three.post("/ppo-reward", json={"items": ITEMS, **options}).json()
    rewards = ask("ppo_reward", ITEMS, **options, settings={"base_url": str(three.base_url)} | SPLIT)
    assert rewards.rewards == close([result["reward"] for result in whole["results"]])
    assert [result.scores for result in rewards.results] == [result["scores"] for result in whole["results"]]
    assert [result.selected for result in rewards.results] == [result["selected"] for result in whole["results"]]
    stats = rewards.whiten_stats if isinstance(rewards.whiten_stats, dict) else asdict(rewards.whiten_stats)
    assert list(stats) == list(whole["whiten_stats"])


def test_an_adapter_takes_any_models_score(three: httpx.Client) -> None:
    expected = three.post("/score", json={"items": INPUTS}).json()["results"]
    with RewardClient(str(three.base_url)) as client:
        rewards = Choice(model="maths").score(client, INPUTS)
    assert [reward.value for reward in rewards] == [entry["scores"]["maths"]["score"] for entry in expected]
