"""client == curl: both clients against the running server, compared with the JSON that it answers."""

import json
from dataclasses import asdict
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from app.errors import ShuttingDownError
from reward_client import DeadlineError, InvalidItemError, InvalidRequestError, Limits, UnauthorizedError
from reward_client.results import WhitenStats
from tests.conftest import Serve
from tests.reward_client.conftest import Ask

ITEMS: list[dict[str, Any]] = [
    {"prompt": f"Question {i % 3}?", "response": "tea " * (i + 1), "group_id": i % 3, "ended": i % 2 == 0}
    for i in range(12)
]
SPLIT = {"limits": Limits(max_items=5)}
LOGPROBS: dict[str, list[Any]] = {
    "policy_logprobs": [[-0.1 * (i + 1), -0.5, 1.0] for i in range(12)],
    "reference_logprobs": [[-0.2 * (i + 1), -0.4, 1.0] for i in range(12)],
    "mask": [[1, 1, 0]] * 12,
}
NOT_GIVEN = dict.fromkeys(["parts", "singleton", "scores", "process_rewards", "step_ends", "process_reward"])
"""What the service leaves out of its answer where it does not apply, and the client has as None."""
INPUTS = [{"prompt": item["prompt"], "response": item["response"]} for item in ITEMS]


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = client.post(path, json=body).json()
    return answer


def rows(**columns: list[Any]) -> list[dict[str, Any]]:
    return [item | {name: values[i] for name, values in columns.items()} for i, item in enumerate(ITEMS)]


@pytest.mark.parametrize("settings", [{}, SPLIT])
def test_scores_are_those_of_one_request_however_they_were_split(
    client: httpx.Client, ask: Ask, settings: dict[str, Any]
) -> None:
    expected = post(client, "/score", {"items": INPUTS})
    scores = ask("score", INPUTS, settings=settings)
    for result, entry in zip(scores.results, expected["results"], strict=True):
        for name, score in result.scores.items():
            assert {k: v for k, v in asdict(score).items() if v is not None} == entry["scores"][name]
    assert scores.usage.num_tokens == expected["usage"]["num_tokens"]
    assert scores.of("safety") == [entry["scores"]["safety"]["score"] for entry in expected["results"]]


def test_options_reach_the_server(ask: Ask) -> None:
    (result,) = ask("score", INPUTS[:1], models=["safety"], token_scores=True).results
    assert result.scores.keys() == {"safety"}
    assert result.scores["safety"].token_scores[-1] == result.scores["safety"].score


@pytest.mark.parametrize("settings", [{}, SPLIT])
def test_a_comparison_is_that_of_one_request_however_it_was_split(
    client: httpx.Client, ask: Ask, settings: dict[str, Any]
) -> None:
    pairs = [
        {"prompt": "Tea?", "chosen": "yes " * (i + 1), "rejected": "no", "rating": ["better", "slightly_better"][i % 2]}
        for i in range(12)
    ]
    expected = post(client, "/compare", {"pairs": pairs, "margin_scheme": "small"})
    comparison = ask("compare", pairs, margin_scheme="small", settings=settings)
    assert [asdict(result) for result in comparison.results] == expected["results"]
    assert asdict(comparison.summary) == {
        name: pytest.approx(value, rel=1e-12) for name, value in expected["summary"].items()
    }


@pytest.mark.parametrize("settings", [{}, SPLIT])
@pytest.mark.parametrize("mode", ["batch", "group", "none"])
def test_rewards_are_those_of_one_request_however_they_were_split(
    client: httpx.Client, ask: Ask, settings: dict[str, Any], mode: str
) -> None:
    options = {
        "whiten": {"mode": mode, "shift_mean": False} if mode != "none" else {"mode": mode},
        "kl": {"estimator": "k3"},
        "beta": 0.1,
        "token_rewards": True,
        "missing_eos_penalty": 0.5,
        "score_clip": [-2, 2],
    }
    expected = post(client, "/ppo-reward", {"items": rows(**LOGPROBS), **options})
    rewards = ask("ppo_reward", ITEMS, **LOGPROBS, settings=settings, **options)
    for result, entry in zip(rewards.results, expected["results"], strict=True):
        near = {
            k: pytest.approx(v, rel=1e-9, abs=1e-12) if isinstance(v, float | list) else v for k, v in entry.items()
        }
        assert asdict(result) == NOT_GIVEN | near
    assert rewards.mean_kl == pytest.approx(expected["mean_kl"])
    assert rewards.usage.num_tokens == expected["usage"]["num_tokens"]
    stats = expected["whiten_stats"]
    own = {"": rewards.whiten_stats} if mode != "group" else rewards.whiten_stats
    for group, one in ({"": stats} if mode != "group" else stats).items():
        assert asdict(own[group]) == {name: pytest.approx(value) for name, value in one.items()}
    assert [sum(row) for row in rewards.token_rewards] == pytest.approx(rewards.rewards)


COMBINATIONS: list[dict[str, Any]] = [
    {"mode": "weighted", "weights": {"safety": 0.3, "helpfulness": 0.7}},
    {"mode": "weighted", "weights": {"safety": 0.3, "helpfulness": 0.7}, "whiten_each": True},
    {"mode": "lagrangian", "lambda": 1.2},
    {"mode": "worst"},
]


@pytest.mark.parametrize("combine", COMBINATIONS, ids=json.dumps)
@pytest.mark.parametrize("mode", ["batch", "group"])
def test_combined_rewards_are_those_of_one_request_however_they_were_split(
    client: httpx.Client, ask: Ask, combine: dict[str, Any], mode: str
) -> None:
    options = {"combine": combine, "whiten": {"mode": mode, "singletons": "zero"}}
    expected = post(client, "/ppo-reward", {"items": rows(**LOGPROBS), **options})
    rewards = ask("ppo_reward", ITEMS, **LOGPROBS, settings=SPLIT, **options)
    for result, entry in zip(rewards.results, expected["results"], strict=True):
        assert (result.selected, result.singleton) == (entry["selected"], entry["singleton"])
        assert result.reward == pytest.approx(entry["reward"], rel=1e-9, abs=1e-12)
        assert result.parts is not None
        for model, part in entry["parts"].items():
            assert result.parts[model] == pytest.approx(part, rel=1e-9, abs=1e-12)


def test_groups_that_would_share_a_key_are_refused_however_they_are_split(ask: Ask) -> None:
    items = [{"safety_score": float(i), "is_safety": True, "group_id": [1, "1"][i % 2]} for i in range(12)]
    with pytest.raises(InvalidItemError, match="cannot tell these groups apart") as refused:
        ask("ppo_reward", items, whiten={"mode": "group"}, settings=SPLIT)
    assert refused.value.item == 1


@pytest.mark.parametrize("settings", [{}, SPLIT])
def test_statistics_that_are_given_are_used_as_they_are(ask: Ask, settings: dict[str, Any]) -> None:
    stats = WhitenStats(100, 0.5, 300.0)
    rewards = ask("ppo_reward", INPUTS, whiten={"stats": stats}, settings=settings)
    for result in rewards.results:
        assert result.whitened == pytest.approx((result.shaped_score - 0.5) * (300 / 99 + 1e-8) ** -0.5)


def test_logprobs_may_be_tensors_arrays_or_lists(ask: Ask) -> None:
    answers = [
        ask("ppo_reward", ITEMS, **{name: make(values) for name, values in LOGPROBS.items()}, token_rewards=True)
        for make in (list, np.array, torch.tensor)
    ]
    for answer in answers[1:]:
        for result, expected in zip(answer.results, answers[0].results, strict=True):
            assert result.reward == pytest.approx(expected.reward, rel=1e-6)
    one = torch.tensor(LOGPROBS["policy_logprobs"][0], requires_grad=True)
    item = {**ITEMS[0], "policy_logprobs": one, "reference_logprobs": one.detach().bfloat16(), "mask": one < 0}
    (result,) = ask("ppo_reward", [item], whiten={"mode": "none"}).results
    assert result.num_kl_tokens == 2


def test_what_the_mask_leaves_out_may_be_infinite(ask: Ask) -> None:
    item = {**INPUTS[0], "policy_logprobs": [-1.0, float("-inf")], "reference_logprobs": [-1.0, float("nan")]}
    (result,) = ask("ppo_reward", [{**item, "mask": [True, False]}], whiten={"mode": "none"}).results
    assert result.kl == 0
    with pytest.raises(InvalidRequestError, match="is null"):
        ask("ppo_reward", [item], whiten={"mode": "none"})


def test_an_error_names_the_item_of_the_whole_list_and_carries_the_body(ask: Ask) -> None:
    items = [*INPUTS[:7], {"input_ids": [999_999]}, *INPUTS[:2]]
    with pytest.raises(InvalidRequestError, match=r"items\[7\] has token id 999999") as caught:
        ask("score", items, settings=SPLIT)
    assert (caught.value.status, caught.value.code, caught.value.item) == (422, "invalid_input", 7)
    assert caught.value.body["error"]["code"] == "invalid_input"


def test_no_items_are_refused_by_the_server_and_not_answered_with_nothing(ask: Ask) -> None:
    with pytest.raises(InvalidRequestError, match="items"):
        ask("score", [])


def test_a_group_without_an_id_is_refused(ask: Ask) -> None:
    with pytest.raises(InvalidRequestError, match="no group_id"):
        ask("ppo_reward", INPUTS, whiten={"mode": "group"})
    with pytest.raises(InvalidItemError, match="no group_id"):
        ask("ppo_reward", INPUTS, whiten={"mode": "group"}, settings=SPLIT)


def test_columns_of_another_length_are_refused(ask: Ask) -> None:
    with pytest.raises(InvalidItemError, match="3 rows and there are 12 items"):
        ask("ppo_reward", ITEMS, policy_logprobs=[[-1.0]] * 3)


def test_info_and_other_routes_are_reached(ask: Ask) -> None:
    assert ask("info")["models"].keys() == {"safety", "helpfulness"}
    assert len(ask("post", "/get_reward", {"query": ["tea"]})["rewards"]) == 1


def test_a_key_is_sent_and_a_wrong_one_is_its_own_error(serve: Serve, ask: Ask) -> None:
    with serve(api_keys="secret") as server:
        url = str(server.base_url)
        assert ask("score", INPUTS[:1], settings={"base_url": url, "api_key": "secret"}).results
        with_password = url.replace("http://", "http://trainer:secret@")
        assert ask("score", INPUTS[:1], settings={"base_url": with_password}).results
        with pytest.raises(UnauthorizedError):
            ask("score", INPUTS[:1], settings={"base_url": url, "api_key": "wrong"})


def test_a_server_that_goes_away_is_waited_for_until_the_deadline(serve: Serve, ask: Ask) -> None:
    with serve() as server:
        server.app.state.service.draining = True  # type: ignore[attr-defined]
        settings = {"base_url": str(server.base_url)}
        seconds = ShuttingDownError.retry_after_seconds - 1  # a pause would pass it, so nothing is waited for
        with pytest.raises(DeadlineError, match="shutting_down"):
            ask("score", INPUTS[:1], deadline_seconds=seconds, settings=settings)
