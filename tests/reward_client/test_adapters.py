"""Each adapter called as its trainer documents, against the running server."""

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from reward_client import (
    AsyncRewardClient,
    BadReplyError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineError,
    InvalidItemError,
    InvalidRequestError,
    RewardClient,
    RewardClientError,
)
from reward_client.adapters import openrlhf, source, verl
from reward_client.adapters import trl as trl_adapter
from reward_client.adapters.trl import reward_function
from tests.api.compat.support import LONG, llama2, native
from tests.reward_client.conftest import QUICK

PROMPT, RESPONSE = "How long should green tea steep?", "Two minutes."
TURNS = [{"role": "user", "content": PROMPT}]
ANSWER = [{"role": "assistant", "content": RESPONSE}]


@pytest.fixture(autouse=True)
def environment(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("REWARD_CLIENT_URL", url)
    yield
    for key, client in list(source._clients.items()):
        if isinstance(client, RewardClient):
            client.close()
            del source._clients[key]


async def in_one_loop(awaitable: Any) -> Any:
    """Closes what the shared clients opened in this loop."""
    try:
        return await awaitable
    finally:
        for client in source._clients.values():
            if isinstance(client, AsyncRewardClient):
                await client.aclose()


def trl(function: Any, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
    """As GRPOTrainer calls it: by keyword, with every column and more."""
    more = {"completion_ids": [[1]] * len(prompts), "trainer_state": object(), "log_extra": print, **columns}
    result: list[float | None] = asyncio.run(function(prompts=prompts, completions=completions, **more))
    return result


def test_trl_gets_a_raw_reward_a_completion_of_strings_and_of_messages(client: httpx.Client, url: str) -> None:
    item = {"prompt": PROMPT, "response": RESPONSE}
    expected = llama2(native(client, item))
    function = reward_function(url)
    assert function.__name__ == "reward_service"
    assert trl(function, [PROMPT, PROMPT], [RESPONSE, "no"]) == [
        expected,
        llama2(native(client, item | {"response": "no"})),
    ]
    assert trl(function, [TURNS], [ANSWER]) == [expected]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": RESPONSE}], "reasoning": "none"}]
    assert trl(function, [TURNS], [parts]) == [expected]
    assert trl(reward_function(url, rendered=True), [PROMPT], [RESPONSE]) == [
        llama2(native(client, {"text": PROMPT + RESPONSE}))
    ]


def test_trl_may_name_one_model_or_mark_safety_prompts(client: httpx.Client, url: str) -> None:
    scores = native(client, {"prompt": PROMPT, "response": RESPONSE})
    for model in ("safety", "helpfulness"):
        assert trl(reward_function(url, model=model), [PROMPT], [RESPONSE], is_safety=[True]) == [scores[model]]
    assert trl(reward_function(url), [PROMPT], [RESPONSE], is_safety=[True]) == [scores["safety"]]


def test_trl_gets_none_for_what_can_never_be_scored_and_the_others_scores(url: str) -> None:
    rewards = trl(reward_function(url), [PROMPT, PROMPT, TURNS], [RESPONSE, LONG, [{"role": "tool", "content": "42"}]])
    assert rewards[0] is not None
    assert rewards[1:] == [None, None]


class CountingTransport(httpx.AsyncHTTPTransport):
    """Counts the requests that are sent."""

    num_requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.num_requests += 1
        return await super().handle_async_request(request)


def num_computed_tokens(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("reward_computed_tokens_total{"))


@pytest.mark.parametrize(
    ("invalid", "reason", "num_requests"),
    [
        ({5: LONG}, "too_long", 2),
        ({5: LONG, 6: LONG, 63: LONG, 0: LONG}, "too_long", 5),
        ({63: "\ud800"}, "surrogate", 1),
    ],
    ids=["one over-long", "four over-long", "lone surrogate"],
)
def test_trl_leaves_out_each_invalid_completion_and_sends_the_rest_once(
    client: httpx.Client,
    url: str,
    caplog: pytest.LogCaptureFixture,
    invalid: dict[int, str],
    reason: str,
    num_requests: int,
) -> None:
    """The warning names the completion by its index in the trainer's batch."""
    prompt = f"{PROMPT} ({reason}, {len(invalid)})"
    completions = [invalid.get(i, f"For {i} minutes.") for i in range(64)]
    transport = CountingTransport()
    before = num_computed_tokens(client)
    rewards = trl(reward_function(AsyncRewardClient(url, transport=transport)), [prompt] * 64, completions)
    computed = num_computed_tokens(client) - before
    assert [i for i, reward in enumerate(rewards) if reward is None] == sorted(invalid)
    assert transport.num_requests == num_requests
    assert [record.message.split(" has no reward: ")[0] for record in caplog.records] == [
        f"completion {i}" for i in sorted(invalid)
    ]
    for record, i in zip(caplog.records, sorted(invalid), strict=True):
        assert reason in record.message
        assert f"items[{i}]" in record.message
    good = [i for i in range(64) if i not in invalid]
    alone = client.post(
        "/ppo-reward",
        json={
            "items": [{"prompt": f"{prompt} ", "response": completions[i]} for i in good],  # another prompt: not cached
            "whiten": {"mode": "none"},
        },
    ).json()
    assert (
        computed < 1.6 * alone["usage"]["num_computed_tokens"]
    )  # of a refused request at most a first slice is computed
    whole = client.post(
        "/ppo-reward",
        json={
            "items": [{"prompt": prompt, "response": completions[i]} for i in good],
            "whiten": {"mode": "none"},
            "truncation": "prompt",
        },
    ).json()
    assert [rewards[i] for i in good] == [result["reward"] for result in whole["results"]]


@pytest.mark.parametrize("item", [{"response": object()}, {"response": float("nan")}])
def test_trl_leaves_out_what_cannot_be_written_as_json(url: str, item: dict[str, Any]) -> None:
    items = [{"prompt": PROMPT, "response": RESPONSE}] * 3
    items[1] = items[1] | item

    async def run() -> trl_adapter.Answers:
        async with AsyncRewardClient(url) as client:
            return await trl_adapter.answers_of(client, source.Choice(), items)

    rewards = asyncio.run(run())
    assert [reward is None for reward in rewards] == [False, True, False]


def test_trl_gets_only_none_where_every_completion_is_invalid(url: str) -> None:
    assert trl(reward_function(url), [PROMPT] * 3, [LONG] * 3) == [None] * 3
    assert trl(reward_function(url), [], []) == []


def test_trl_gets_an_exception_where_nobody_answers() -> None:
    dead = AsyncRewardClient("http://127.0.0.1:9", retry=QUICK)
    with pytest.raises(ConnectionFailedError):
        trl(reward_function(dead), [PROMPT], [RESPONSE])


def test_verl_gets_a_score_and_numbers_for_its_metrics(client: httpx.Client) -> None:
    async def run() -> dict[str, float]:
        return await verl.compute_score(
            data_source="mine",
            solution_str=RESPONSE,
            ground_truth="42",
            extra_info={"prompt": PROMPT, "index": 7},
            reward_router_address="x:1",
        )

    scores = native(client, {"prompt": PROMPT, "response": RESPONSE})
    result = asyncio.run(in_one_loop(run()))
    assert result["score"] == llama2(scores)
    assert (result["safety_score"], result["helpfulness_score"]) == (scores["safety"], scores["helpfulness"])
    assert all(isinstance(value, float) for value in result.values())


@pytest.mark.parametrize(
    "info",
    [{"prompt": PROMPT}, {"raw_prompt": np.array(TURNS, dtype=object)}, {"question": PROMPT}, {"prompt": TURNS}],
)
def test_verl_finds_the_prompt_in_extra_info(client: httpx.Client, info: dict[str, Any]) -> None:
    (result,) = verl.compute_score_batch(
        data_sources=["mine"],
        solution_strs=[RESPONSE],
        ground_truths=[None],
        extra_infos=[info],
        reward_router_address=None,
    )
    assert result["score"] == llama2(native(client, {"prompt": PROMPT, "response": RESPONSE}))


def test_verl_gets_an_exception_where_the_prompt_is_missing() -> None:
    with pytest.raises(InvalidItemError, match="extra_info has none of prompt"):
        verl.compute_score_batch(["mine"], [RESPONSE], [None], [{"index": 1}])


@pytest.mark.parametrize(("truth", "info"), [("safety", {}), (None, {"is_safety": True})])
def test_verl_marks_safety_prompts(client: httpx.Client, truth: Any, info: dict[str, Any]) -> None:
    (result,) = verl.compute_score_batch(["mine"], [RESPONSE], [truth], [{"prompt": PROMPT, **info}])
    assert result["score"] == native(client, {"prompt": PROMPT, "response": RESPONSE})["safety"]


def test_verl_uses_the_model_of_the_environment(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_CLIENT_MODEL", "helpfulness")
    (result,) = verl.compute_score_batch(["mine"], [RESPONSE], [None], [{"prompt": PROMPT}])
    expected = native(client, {"prompt": PROMPT, "response": RESPONSE})["helpfulness"]
    assert math.isnan(result.pop("safety_score"))
    assert result == {"score": expected, "helpfulness_score": expected, "selected_safety": 0.0, "truncated": 0.0}
    monkeypatch.setenv("REWARD_CLIENT_MODEL", "helpfullness")
    with pytest.raises(InvalidRequestError, match="helpfullness model, which is not loaded; name one of safety, helpf"):
        verl.compute_score_batch(["mine"], [RESPONSE], [None], [{"prompt": PROMPT}])
    monkeypatch.setenv("REWARD_CLIENT_MODEL", "Helpfulness")
    with pytest.raises(ValueError, match="the model is 'Helpfulness'"):
        verl.compute_score_batch(["mine"], [RESPONSE], [None], [{"prompt": PROMPT}])


def test_verl_gets_a_score_of_an_over_long_response_and_a_warning(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    result = verl.compute_score_sync("mine", LONG, None, {"prompt": PROMPT})
    item = {"prompt": PROMPT, "response": LONG}
    assert result["score"] == llama2(native(client, item, truncation="left"))
    assert result["truncated"] == 1
    assert [record.message for record in caplog.records] == [
        "1 of 1 inputs had more tokens than the model takes and were truncated"
    ]


def test_verls_reward_kwargs_win_over_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Ray cluster that was already running, the environment's variables do not arrive."""
    monkeypatch.setenv("REWARD_CLIENT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("REWARD_CLIENT_MODEL", "safety")
    options = {
        "url": url,
        "model": "helpfulness",
        "truncation": "error",
        "deadline_seconds": "20",
        "max_concurrency": 3,
    }
    result = verl.compute_score_sync("mine", RESPONSE, None, {"prompt": PROMPT}, **options)
    assert result["score"] == result["helpfulness_score"]
    with pytest.raises(InvalidRequestError, match="the limit is 512"):
        verl.compute_score_sync("mine", LONG, None, {"prompt": PROMPT}, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modle": "safety"}, "unknown option 'modle'; the options are url, api_key, model"),
        ({"deadline_seconds": "soon"}, "deadline_seconds .REWARD_CLIENT_DEADLINE_SECONDS. is 'soon'; pass a number"),
    ],
)
def test_verl_gets_an_error_for_an_option_that_cannot_be_honoured(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        verl.compute_score_sync("mine", RESPONSE, None, {"prompt": PROMPT}, **options)


def test_verl_opens_as_many_connections_as_it_starts_calls() -> None:
    assert source.shared(AsyncRewardClient, 1, verl.NUM_COROUTINES).settings.max_concurrency == 512


def test_openrlhf_gets_rewards_scores_and_logs(client: httpx.Client) -> None:
    queries = [f"<s>{PROMPT} {RESPONSE}</s>", f"<s>{PROMPT} no</s>"]
    reply = openrlhf.reward_func(queries, [PROMPT, PROMPT], ["safety", "42"])
    expected = client.post("/get_reward", json={"query": queries, "labels": ["safety", "42"]}).json()
    assert reply == expected
    assert all(0 < score < 1 for score in reply["scores"])
    assert openrlhf.reward_func([], [], [])["rewards"] == []


def test_openrlhf_gets_an_exception_for_a_reply_that_lacks_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"rewards": [None], "scores": [0.5]}))
    with RewardClient("http://rewards", transport=transport) as client:
        monkeypatch.setattr(openrlhf, "shared", lambda *_: client)
        with pytest.raises(BadReplyError, match="rewards is"):
            openrlhf.reward_func(["a"], ["a"], ["a"])


def test_a_model_that_was_not_loaded_is_nan_in_the_metrics() -> None:
    assert math.isnan(source.number(None))


def test_errors_have_one_base() -> None:
    assert issubclass(InvalidRequestError, RewardClientError)
    assert issubclass(DeadlineError, TimeoutError)
    assert issubclass(InvalidItemError, ValueError)
