"""Each adapter called as its trainer documents, against the running server."""

import asyncio
import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from reward_client import (
    AsyncRewardClient,
    BadReplyError,
    ConnectionFailedError,
    DeadlineError,
    InvalidItemError,
    InvalidRequestError,
    RewardClient,
    RewardClientError,
)
from reward_client.adapters import areal, openrlhf, source, verl
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


def test_trl_gets_an_exception_where_nobody_answers() -> None:
    dead = AsyncRewardClient("http://127.0.0.1:9", retry=QUICK)
    with pytest.raises(ConnectionFailedError):
        trl(reward_function(dead), [PROMPT], [RESPONSE])


def test_verl_gets_a_score_and_numbers_for_its_metrics(client: httpx.Client) -> None:
    async def run() -> dict[str, float]:
        return await verl.compute_score(
            data_source="mine", solution_str=RESPONSE, ground_truth="42", extra_info={"prompt": PROMPT, "index": 7}, x=1
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
        data_sources=["mine"], solution_strs=[RESPONSE], ground_truths=[None], extra_infos=[info], reward_router=None
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
    assert result == {"score": expected, "helpfulness_score": expected, "truncated": 0.0}
    monkeypatch.setenv("REWARD_CLIENT_MODEL", "helpfullness")
    with pytest.raises(ValueError, match="helpfullness"):
        verl.compute_score_batch(["mine"], [RESPONSE], [None], [{"prompt": PROMPT}])


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


def test_areal_gets_a_float_of_rendered_texts_and_of_messages(client: httpx.Client) -> None:
    reward = areal.reward_fn(f"<s>{PROMPT}", RESPONSE, [1, 2], [3], answer="42", index=0)
    assert reward == llama2(native(client, {"text": f"<s>{PROMPT}{RESPONSE}"}))
    assert areal.reward_fn(TURNS, RESPONSE, [1], [2]) == llama2(
        native(client, {"prompt": PROMPT, "response": RESPONSE})
    )
    assert isinstance(areal.reward_fn(PROMPT, LONG, [1], [2], is_safety=True), float)


def test_areal_may_call_it_in_a_pool_of_processes(client: httpx.Client) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        reward = pool.submit(areal.reward_fn, PROMPT, RESPONSE, [1], [2], answer="42").result(timeout=60)
    assert reward == llama2(native(client, {"text": PROMPT + RESPONSE}))


def test_areal_raises_within_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_CLIENT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("REWARD_CLIENT_DEADLINE_SECONDS", "0.1")
    assert areal.DEADLINE_SECONDS < 15
    with pytest.raises(DeadlineError):
        areal.reward_fn(PROMPT, RESPONSE, [1], [2])


def test_a_model_that_was_not_loaded_is_nan_in_the_metrics() -> None:
    assert math.isnan(source.number(None))


def test_errors_have_one_base() -> None:
    assert issubclass(InvalidRequestError, RewardClientError)
    assert issubclass(DeadlineError, TimeoutError)
    assert issubclass(InvalidItemError, ValueError)
