"""A service with more models than Llama 2's two, and one without those two."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.asking import LOCK, TEA, ask, assert_error
from tests.conftest import Serve
from tests.models import make_model

PAIR = {"prompt": TEA["prompt"], "chosen": TEA["response"], "rejected": "tea tea", "rating": "better"}
DISPATCHED = ("/score", "/compare", "/ppo-reward")


@pytest.fixture(scope="module")
def maths_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("maths"), seed=3)


@pytest.fixture(scope="module")
def style_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("style"), seed=4)


@pytest.fixture(scope="module")
def four(serve: Serve, maths_dir: Path, style_dir: Path) -> Iterator[httpx.Client]:
    """The two roles and two further models."""
    with serve(models={"maths": str(maths_dir), "style": {"source": str(style_dir)}}) as client:
        yield client


@pytest.fixture(scope="module")
def others(serve: Serve, maths_dir: Path, style_dir: Path) -> Iterator[httpx.Client]:
    """Neither of the two roles."""
    with serve(
        models={"style": str(style_dir), "maths": str(maths_dir)}, safety_model="", helpfulness_model=""
    ) as client:
        yield client


def scores_of(client: httpx.Client, item: dict[str, Any] = TEA) -> dict[str, float]:
    (result,) = ask(client, "/score", {"items": [item]})["results"]
    return {name: entry["score"] for name, entry in result["scores"].items()}


# -- /score, /compare ---------------------------------------------------------------------------------------------------


def test_score_gives_every_model_the_roles_first_with_the_scores_that_they_have_alone(
    client: httpx.Client, four: httpx.Client, others: httpx.Client
) -> None:
    scores = scores_of(four)
    assert list(scores) == ["safety", "helpfulness", "maths", "style"]
    assert scores == scores_of(client) | scores_of(others)
    assert len(set(scores.values())) == 4
    (named,) = ask(four, "/score", {"items": [TEA], "models": ["style", "safety"]})["results"]
    assert {name: entry["score"] for name, entry in named["scores"].items()} == {
        name: scores[name] for name in ("style", "safety")
    }


def test_a_request_that_names_the_two_roles_is_answered_as_without_further_models(
    client: httpx.Client, four: httpx.Client
) -> None:
    for path, body in (
        ("/score", {"items": [TEA, LOCK], "models": ["safety", "helpfulness"]}),
        ("/compare", {"pairs": [PAIR]}),
        ("/ppo-reward", {"items": [TEA, LOCK]}),
        ("/ppo-reward", {"items": [TEA, LOCK], "combine": {"mode": "worst"}}),
    ):
        answers = [ask(each, path, body) for each in (client, four)]
        for answer in answers:
            del answer["usage"]  # of two caches
        assert answers[0] == answers[1], path


@pytest.mark.parametrize("path", DISPATCHED)
def test_a_model_that_is_not_loaded_is_a_422_that_lists_those_that_are(others: httpx.Client, path: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/score": {"items": [TEA], "models": ["poetry"]},
        "/compare": {"pairs": [PAIR], "model": "poetry"},
        "/ppo-reward": {"items": [TEA, LOCK], "combine": {"mode": "weighted", "weights": {"poetry": 1}}},
    }
    says = "needs the poetry model, which is not loaded; name one of style, maths, or add it to REWARD_MODELS"
    assert_error(others.post(path, json=bodies[path]), 422, "invalid_input", says=says)


@pytest.mark.parametrize(("name", "shown"), [("", "(blank)"), ("{index}", "{index}"), ("a\nb" * 99, "a ba b")])
def test_a_name_that_no_model_can_have_is_shown_on_one_line(others: httpx.Client, name: str, shown: str) -> None:
    response = others.post("/score", json={"items": [TEA], "models": ["maths", name]})
    assert_error(response, 422, "invalid_input", says=f"models[1] needs the {shown}")
    message = response.json()["error"]["message"]
    assert message.endswith(" model, which is not loaded; name one of style, maths")
    assert len(message) < 200


def test_compare_gives_the_results_of_each_model_named(four: httpx.Client) -> None:
    both = ask(four, "/compare", {"pairs": [PAIR], "models": ["maths", "safety"]})
    assert list(both["by_model"]) == ["maths", "safety"]
    for name, own in both["by_model"].items():
        alone = ask(four, "/compare", {"pairs": [PAIR], "model": name})
        assert "by_model" not in alone
        assert own == {"results": alone["results"], "summary": alone["summary"]}
    assert both["results"] == both["by_model"]["maths"]["results"]
    assert both["summary"] == both["by_model"]["maths"]["summary"]
    wrong = four.post("/compare", json={"pairs": [PAIR], "models": ["maths"], "model": "maths"})
    assert_error(wrong, 422, "invalid_input", says="both model and models")


def test_compare_without_a_name_needs_the_helpfulness_model(others: httpx.Client) -> None:
    response = others.post("/compare", json={"pairs": [PAIR]})
    assert_error(response, 422, "invalid_input", says="needs the helpfulness model, which is not loaded")


# -- /ppo-reward --------------------------------------------------------------------------------------------------------


def test_a_weighted_sum_takes_any_models_and_runs_no_other(four: httpx.Client, others: httpx.Client) -> None:
    weights = {"style": 0.5, "maths": 2.0}
    body = {"items": [TEA, LOCK], "combine": {"mode": "weighted", "weights": weights}, "whiten": {"mode": "none"}}
    for client in (four, others):
        answer = ask(client, "/ppo-reward", body)
        num_tokens = ask(client, "/score", {"items": [TEA, LOCK], "models": ["maths", "style"]})["usage"]["num_tokens"]
        assert answer["usage"]["num_tokens"] == num_tokens
        for item, result in zip((TEA, LOCK), answer["results"], strict=True):
            scores = scores_of(client, item)
            assert (result["safety_score"], result["helpfulness_score"]) == (None, None)
            assert result["scores"] == {name: scores[name] for name in weights}
            terms = {name: weight * scores[name] for name, weight in weights.items()}
            assert {name: part["contribution"] for name, part in result["parts"].items()} == terms
            assert result["reward"] == pytest.approx(sum(terms.values()), rel=1e-12)


def test_a_role_and_a_further_model_may_be_summed(four: httpx.Client) -> None:
    weights = {"maths": 1.0, "safety": 3.0}
    body = {"items": [TEA], "combine": {"mode": "weighted", "weights": weights}, "whiten": {"mode": "none"}}
    (result,) = ask(four, "/ppo-reward", body)["results"]
    scores = scores_of(four)
    assert (result["safety_score"], result["scores"]) == (scores["safety"], {"maths": scores["maths"]})
    assert list(result["parts"]) == ["safety", "maths"]
    assert result["reward"] == pytest.approx(3 * scores["safety"] + scores["maths"], rel=1e-12)


def test_the_worst_of_three_is_the_lowest_whitened_score(four: httpx.Client) -> None:
    names = ["maths", "safety", "style"]
    items = [TEA, LOCK, TEA | {"response": "tea"}]
    body = {"items": items, "combine": {"mode": "worst", "models": names}}
    answer = ask(four, "/ppo-reward", body)
    assert list(answer["whiten_stats"]) == ["safety", "maths", "style"]
    raw = {name: [scores_of(four, item)[name] for item in items] for name in names}
    white = {name: whitened(values) for name, values in raw.items()}
    for i, result in enumerate(answer["results"]):
        lowest = min(("safety", "maths", "style"), key=lambda name: white[name][i])
        assert result["selected"] == lowest
        assert result["selected_score"] == raw[lowest][i]
        assert result["whitened"] == pytest.approx(white[lowest][i], rel=1e-9)
    again = ask(four, "/ppo-reward", body | {"whiten": {"stats": answer["whiten_stats"]}})
    assert [result["reward"] for result in again["results"]] == [result["reward"] for result in answer["results"]]


def whitened(values: list[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return [(value - mean) / math.sqrt(variance + 1e-8) for value in values]


def test_known_scores_of_any_models_are_combined_without_running_one(others: httpx.Client) -> None:
    items = [{"safety_score": 1.0, "scores": {"poetry": x}, "group_id": "a"} for x in (1.0, 3.0)]
    combine = {"mode": "weighted", "weights": {"poetry": 2.0, "safety": 1.0}, "whiten_each": True}
    body = {"items": items, "combine": combine, "whiten": {"mode": "group"}}
    answer = ask(others, "/ppo-reward", body)
    assert answer["whiten_stats"]["poetry"]["a"] == {"count": 2, "mean": 2.0, "m2": 2.0}
    assert [result["scores"] for result in answer["results"]] == [{"poetry": 1.0}, {"poetry": 3.0}]
    assert [result["reward"] for result in answer["results"]] == pytest.approx([-math.sqrt(2), math.sqrt(2)])
    given = body | {"whiten": {"mode": "group", "stats": answer["whiten_stats"]}}
    assert ask(others, "/ppo-reward", given)["results"] == answer["results"]


@pytest.mark.parametrize(
    ("items", "combine", "says"),
    [
        ([{"scores": {}}], {}, "items[0].scores"),
        ([{"safety_score": 1.0, "scores": {"safety": 1.0}}], {}, "items[0] has both safety_score and scores.safety"),
        ([TEA | {"scores": {"maths": 1.0}}], {}, "items[0] has both scores and prompt and response"),
        ([{"scores": {"maths": 1.0}}], {}, "items[0] has no safety_score; it is needed to select"),
        (
            [{"scores": {"maths": 1.0}}],
            {"mode": "worst", "models": ["maths", "style"]},
            "items[0] has no scores.style; combine mode worst needs the scores of maths and style of every item",
        ),
        ([TEA], {"mode": "worst", "models": ["maths", "maths"]}, "a model more than once"),
        ([TEA], {"mode": "worst", "models": []}, "combine.models"),
        ([TEA], {"mode": "weighted", "weights": {}}, "combine.weights"),
        ([TEA], {"mode": "weighted", "weights": {"maths": -1}}, "combine.weights.maths is -1"),
        ([TEA], {"mode": "weighted", "weights": {"maths": 1}, "models": ["maths"]}, "combine has models"),
        ([TEA], {"mode": "worst"}, "needs the safety model"),
        ([TEA], {}, "needs the safety model"),
        ([TEA], {"mode": "lagrangian", "lambda": 1}, "needs the safety model"),
    ],
)
def test_a_combination_that_cannot_be_made_is_named(
    others: httpx.Client, items: list[Any], combine: dict[str, Any], says: str
) -> None:
    response = others.post("/ppo-reward", json={"items": items, "combine": combine, "whiten": {"mode": "none"}})
    assert response.status_code == 422, response.text
    assert says in response.json()["error"]["message"]


# -- the rest of the API ------------------------------------------------------------------------------------------------


def test_every_name_selects_its_model_in_the_dialects(four: httpx.Client) -> None:
    scores = scores_of(four, {"text": "tea"})
    for name, score in scores.items():
        vllm = four.post("/pooling", json={"model": name, "input": "tea"}).json()
        assert vllm["data"][0]["data"] == [score], name
        openrlhf = four.post("/get_reward", json={"query": ["tea"], "model": name}).json()
        assert list(openrlhf["extra_logs"]) == [f"{name}_score", "truncated"]
        slime = four.post("/slime", json={"prompt": "tea", "response": "", "model": name})
        assert slime.status_code == 200
        assert four.get(f"/v1/models/{name}").json()["id"] == name
    assert [card["id"] for card in four.get("/v1/models").json()["data"]] == ["llama2", *scores]


def test_a_service_without_the_roles_answers_dialects_by_its_first_model(
    others: httpx.Client, serve: Serve, maths_dir: Path, style_dir: Path
) -> None:
    scores = scores_of(others, {"text": "tea"})
    body = {"model": "a/path/of/verl", "input": "tea"}
    assert others.post("/pooling", json=body).json()["data"][0]["data"] == [scores["style"]]
    assert [card["id"] for card in others.get("/v1/models").json()["data"]] == ["style", "maths"]
    assert others.get("/model_info").json()["served_model_name"] == "style"
    assert others.get("/info").json()["served_model_name"] == "style"
    assert "needs the safety model" in others.post("/pooling", json=body | {"model": "llama2"}).text
    chosen = {"models": {"style": str(style_dir), "maths": str(maths_dir)}, "compat_model": "maths"}
    with serve(**chosen, safety_model="", helpfulness_model="") as client:
        assert client.post("/pooling", json=body).json()["data"][0]["data"] == [scores["maths"]]


def test_info_ready_and_metrics_name_every_model(four: httpx.Client) -> None:
    names = ["safety", "helpfulness", "maths", "style"]
    assert list(four.get("/info").json()["models"]) == names
    assert four.get("/ready").json()["models"] == names
    page = four.get("/metrics").text
    for name in names:
        assert f'reward_scored_sequences_total{{model="{name}"}}' in page
