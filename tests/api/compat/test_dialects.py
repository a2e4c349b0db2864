"""What all dialects share: model choice, truncation, deadlines, docs."""

from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from app.api.compat.dialect import deadline_of
from app.settings import Settings
from tests.api.compat.support import LONG, answer, llama2, native, post
from tests.conftest import Serve

TEXT = "How long should green tea steep? Two minutes."
TURNS = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": LONG}]
ASK: dict[str, dict[str, Any]] = {
    "/get_reward": {"query": [f"<s>{TEXT}"]},
    "/classify": {"input": TEXT},
    "/pooling": {"input": TEXT},
    "/v1/embeddings": {"input": TEXT},
    "/predict": {"inputs": TEXT, "raw_scores": True},
    "/slime": {"prompt": TEXT, "response": ""},
}


def score_in(reply: Any) -> float:
    """The one score of any dialect's reply."""
    while not isinstance(reply, float):
        keys = ("rewards", "data", "probs", "embedding", "score")
        reply = reply[0] if isinstance(reply, list) else reply[next(key for key in keys if key in reply)]
    return reply


@pytest.mark.parametrize("path", ASK)
def test_the_model_field_selects(client: httpx.Client, path: str) -> None:
    scores = native(client, {"text": TEXT})
    for model, expected in (*scores.items(), ("llama2", llama2(scores)), ("/a/path", llama2(scores))):
        assert score_in(answer(client, path, {**ASK[path], "model": model})) == expected


def test_the_setting_chooses_where_the_field_does_not(serve: Serve) -> None:
    with serve(compat_model="safety") as client:
        scores = native(client, {"text": TEXT})
        for each, body in ASK.items():
            assert score_in(answer(client, each, body)) == scores["safety"]
            assert score_in(answer(client, each, {**body, "model": "helpfulness"})) == scores["helpfulness"]


@pytest.mark.parametrize("path", ASK)
def test_with_one_model_that_one_answers(only_helpfulness: httpx.Client, path: str) -> None:
    scores = native(only_helpfulness, {"text": TEXT})
    assert score_in(answer(only_helpfulness, path, ASK[path])) == scores["helpfulness"]


def test_a_model_that_is_not_loaded_is_an_error_that_names_the_setting(only_helpfulness: httpx.Client) -> None:
    response = post(only_helpfulness, "/classify", b'{"input": "a", "model": "llama2"}')
    assert response.status_code == 400
    assert "REWARD_SAFETY_MODEL" in response.json()["error"]["message"]


def test_a_compat_model_that_is_not_loaded_is_refused_at_start() -> None:
    with pytest.raises(ValidationError, match="llama2 needs the safety model"):
        Settings(_env_file=None, safety_model="", compat_model="llama2")


def test_the_model_that_answers_is_named_where_the_request_named_none(
    client: httpx.Client, only_helpfulness: httpx.Client
) -> None:
    assert answer(client, "/classify", {"input": "a"})["model"] == "llama2"
    assert answer(only_helpfulness, "/classify", {"input": "a"})["model"] == "helpfulness"


def test_truncation_error_refuses_a_long_rollout(serve: Serve) -> None:
    with serve(compat_truncation="error") as client:
        assert post(client, "/slime", LONG_SLIME).json()["error"]["code"] == "too_long"


def test_truncation_prompt_is_strict_where_there_is_a_boundary_and_left_elsewhere(serve: Serve) -> None:
    with serve(compat_truncation="prompt") as client:
        response = client.post("/slime", json={"prompt": TURNS[:1], "response": LONG})
        assert response.json()["error"]["code"] == "too_long"
        expected = llama2(native(client, {"text": LONG}, truncation="left"))
        assert answer(client, "/slime", LONG_SLIME) == expected


LONG_SLIME = b'{"prompt": "' + LONG.encode() + b'", "response": ""}'


def test_a_dialects_deadline_is_its_own_unless_the_operators_is_shorter() -> None:
    assert deadline_of(Settings(_env_file=None), 170) == 170
    assert deadline_of(Settings(_env_file=None, deadline_seconds=20), 170) == 20
    assert deadline_of(Settings(_env_file=None, deadline_seconds=600), 170) == 170


@pytest.mark.parametrize("path", ASK)
def test_unknown_fields_are_ignored(client: httpx.Client, path: str) -> None:
    assert score_in(answer(client, path, {**ASK[path], "user": "me", "priority": 0})) == llama2(
        native(client, {"text": TEXT})
    )


def test_the_docs_show_the_routes_under_a_tag_of_their_own_with_examples_that_work(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    for path in ASK:
        operation = schema["paths"][path]["post"]
        assert operation["tags"] == ["compatibility"]
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for example in schema["components"]["schemas"][reference]["examples"]:
            answer(client, path, example)
    assert "compatibility" not in schema["paths"]["/score"]["post"].get("tags", [])
