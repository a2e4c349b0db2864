"""The adapters for trainers that call a plain function or a class, and NeMo Gym's resources server."""

import asyncio
from typing import Any

import httpx
import pytest

from reward_client import AsyncRewardClient, InvalidRequestError
from reward_client.adapters import ms_swift, nemo_gym, plain, source
from tests.api.compat.support import LONG, llama2, native

PROMPT, RESPONSE = "How long should green tea steep?", "Two minutes."
TURNS = [{"role": "user", "content": PROMPT}]


@pytest.fixture
def expected(client: httpx.Client) -> dict[str, float]:
    return native(client, {"prompt": PROMPT, "response": RESPONSE})


def test_a_plain_function_scores_strings_and_messages(client: httpx.Client, expected: dict[str, float]) -> None:
    answer = [{"role": "assistant", "content": RESPONSE}]
    assert plain.reward_fn([PROMPT, TURNS], [RESPONSE, answer], answer_column=["x", "y"]) == [llama2(expected)] * 2
    assert plain.reward_fn(prompts=[PROMPT], completions=[RESPONSE], is_safety=[True]) == [expected["safety"]]
    assert plain.reward(PROMPT, RESPONSE, "target") == llama2(expected)
    long = llama2(native(client, {"prompt": PROMPT, "response": LONG}, truncation="left"))
    assert plain.reward_fn([PROMPT], [LONG]) == [long]
    assert plain.reward_fn([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        plain.reward_fn([PROMPT], [])


def test_ms_swifts_class_scores_a_batch(expected: dict[str, float]) -> None:
    function = ms_swift.RewardService(args=object())
    rows = [[*TURNS, {"role": "assistant", "content": RESPONSE}], TURNS]
    rewards = asyncio.run(function([RESPONSE] * 2, messages=rows, is_safety=[False, True], trainer_state=None))
    assert rewards == [llama2(expected), expected["safety"]]
    assert asyncio.run(function([], messages=[])) == []


def ask(path: str, body: Any, method: str = "POST") -> httpx.Response:
    """In one event loop, as a server runs it."""

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=nemo_gym.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gym") as gym:
            response = await gym.request(method, path, json=body)
        for client in source._clients.values():
            if isinstance(client, AsyncRewardClient):
                await client.aclose()
        source._clients.clear()
        return response

    return asyncio.run(run())


def verify_request(given: Any, *output: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "responses_create_params": {"input": given, "temperature": 1.0},
        "response": {"id": "r", "output": [*output]},
        **more,
    }


MESSAGE = {
    "type": "message",
    "id": "m",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": RESPONSE, "annotations": []}],
}


def test_nemo_gym_gets_its_request_back_with_a_reward(expected: dict[str, float]) -> None:
    assert ask("/seed_session", {}).json() == {}
    request = verify_request(
        [{"role": "user", "content": PROMPT}], {"type": "reasoning", "summary": []}, MESSAGE, row=3
    )
    reply = ask("/verify", request).json()
    assert {key: reply[key] for key in request} == request
    assert reply["reward"] == llama2(expected)
    assert reply["reward_components"] == {f"{name}_score": score for name, score in expected.items()}
    assert reply["safety_score"] == expected["safety"]
    assert ask("/verify", verify_request(PROMPT, MESSAGE, is_safety=True)).json()["reward"] == expected["safety"]


def test_nemo_gyms_system_prompt_is_scored(client: httpx.Client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *TURNS, {"role": "assistant", "content": RESPONSE}]
    scores = llama2(native(client, {"messages": messages}))
    developer = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": PROMPT}]},
    ]
    assert ask("/verify", verify_request(developer, MESSAGE)).json()["reward"] == scores
    request = verify_request(PROMPT, MESSAGE)
    request["responses_create_params"]["instructions"] = "Be brief."
    assert ask("/verify", request).json()["reward"] == scores


def test_nemo_gyms_function_calls_become_tool_calls() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "steep", "arguments": '{"minutes": 2}'}
    output = {"type": "function_call_output", "call_id": "1", "output": "done"}
    turns = nemo_gym.turns_of([call, call | {"call_id": "2"}, output, MESSAGE])
    assert [turn["role"] for turn in turns] == ["assistant", "tool", "assistant"]
    assert [each["id"] for each in turns[0]["tool_calls"]] == ["1", "2"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "no responses_create_params.input"),
        ([], "no responses_create_params.input"),
        (verify_request(PROMPT, {"type": "image_generation_call"}), "'image_generation_call' cannot be scored"),
        (verify_request([{"role": "user", "content": [{"type": "input_image"}]}], MESSAGE), "'input_image' cannot be"),
        (verify_request([]), "messages"),
    ],
)
def test_nemo_gym_gets_422_for_what_cannot_be_scored(body: Any, message: str) -> None:
    response = ask("/verify", body)
    assert response.status_code == 422
    assert message in response.json()["detail"]
    assert "reward" not in response.json()


def test_nemo_gym_gets_503_where_the_service_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_CLIENT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("REWARD_CLIENT_DEADLINE_SECONDS", "0.1")
    response = ask("/verify", verify_request(PROMPT, MESSAGE))
    assert response.status_code == 503
    assert "reward" not in response.json()
    assert ask("/verify", None, "GET").status_code == 404


def test_no_adapter_gives_a_reward_where_the_service_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_CLIENT_TRUNCATION", "error")
    with pytest.raises(InvalidRequestError):
        plain.reward_fn([PROMPT], [LONG])
    with pytest.raises(InvalidRequestError):
        asyncio.run(ms_swift.RewardService()([LONG], messages=[TURNS]))
