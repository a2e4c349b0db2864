import httpx
import pytest

from app.api.compat import slime
from tests.api.compat.support import LONG, answer, llama2, native, post

STRING = b'{"prompt": "<s>[INST] How long? [/INST]", "response": " Two minutes.", "label": "42"}'
MESSAGES = (
    b'{"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How long?"}], '
    b'"response": "Two minutes.", "label": null}'
)


def test_the_answer_is_a_bare_number(client: httpx.Client) -> None:
    score = llama2(native(client, {"text": "<s>[INST] How long? [/INST] Two minutes."}))
    response = post(client, "/slime", STRING)
    assert response.status_code == 200
    assert float(response.text) == score
    assert response.headers["content-type"] == "application/json"


def test_a_string_prompt_is_joined_with_exactly_one_bos_and_no_template(client: httpx.Client) -> None:
    with_bos = answer(client, "/slime", {"prompt": "<s>How long?", "response": " Two."})
    without = answer(client, "/slime", {"prompt": "How long?", "response": " Two."})
    assert with_bos == without == llama2(native(client, {"text": "How long? Two."}))


def test_a_message_prompt_takes_the_template(client: httpx.Client) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How long?"},
        {"role": "assistant", "content": "Two minutes."},
    ]
    assert answer(client, "/slime", MESSAGES) == llama2(native(client, {"messages": turns}))


@pytest.mark.parametrize("label", ["safety", {"is_safety": True}])
def test_a_safety_label_takes_the_safety_score(client: httpx.Client, label: object) -> None:
    reply = answer(client, "/slime", {"prompt": "How long?", "response": " Two.", "label": label})
    assert reply == native(client, {"text": "How long? Two."})["safety"]


def test_a_long_message_prompt_loses_its_oldest_tokens_and_keeps_the_response(client: httpx.Client) -> None:
    turns = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "Two minutes."}]
    reply = answer(client, "/slime", {"prompt": turns[:1], "response": "Two minutes."})
    assert reply == llama2(native(client, {"messages": turns}, truncation="prompt"))


def test_a_response_that_alone_is_too_long_fails_no_batch(client: httpx.Client) -> None:
    turns = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": LONG}]
    reply = answer(client, "/slime", {"prompt": turns[:1], "response": LONG})
    assert reply == llama2(native(client, {"messages": turns}, truncation="left"))


def test_errors_are_statuses_that_the_client_retries_or_not(client: httpx.Client) -> None:
    response = post(client, "/slime", b'{"prompt": "a"}')
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "invalid_input"


def test_the_deadline_is_under_the_clients_120_seconds_and_the_operators_shorter_one_holds(
    hurried: httpx.Client,
) -> None:
    assert 100 < slime.DEADLINE_SECONDS < 120
    response = post(hurried, "/slime", STRING)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
