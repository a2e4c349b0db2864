import json

import httpx
import pytest

from app.api.compat import tei
from app.errors import (
    InferenceFailedError,
    NonFiniteScoreError,
    NotReadyError,
    OverloadedError,
    RequestError,
    ShuttingDownError,
)
from tests.api.compat.support import LONG, answer, llama2, native, post, sigmoid
from tests.conftest import Serve

PAIR = {"prompt": "How long?", "response": "Two minutes."}


def test_a_single_text_gets_one_probability_with_its_label(client: httpx.Client) -> None:
    score = llama2(native(client, {"text": "tea"}))
    expected = [{"score": pytest.approx(sigmoid(score)), "label": "LABEL_0"}]
    assert answer(client, "/predict", b'{"inputs": "tea"}') == expected
    assert answer(client, "/predict", b'{"inputs": "tea", "raw_scores": false}') == expected
    assert answer(client, "/predict", b'{"inputs": ["tea"]}') == expected


def test_raw_scores_are_raw(client: httpx.Client) -> None:
    reply = answer(client, "/predict", b'{"inputs": "tea", "raw_scores": true, "truncate": false}')
    assert reply == [{"score": llama2(native(client, {"text": "tea"})), "label": "LABEL_0"}]


def test_a_flat_list_of_two_is_one_pair_of_prompt_and_response(client: httpx.Client) -> None:
    reply = answer(client, "/predict", b'{"inputs": ["How long?", "Two minutes."], "raw_scores": true}')
    assert reply == [{"score": llama2(native(client, PAIR)), "label": "LABEL_0"}]


def test_a_list_of_lists_is_a_batch_of_texts_and_pairs(client: httpx.Client) -> None:
    reply = answer(client, "/predict", b'{"inputs": [["tea"], ["How long?", "Two minutes."]], "raw_scores": true}')
    expected = [llama2(native(client, {"text": "tea"})), llama2(native(client, PAIR))]
    assert reply == [[{"score": score, "label": "LABEL_0"}] for score in expected]


@pytest.mark.parametrize(
    ("flags", "truncation"),
    [
        ({"truncate": True}, "right"),
        ({"truncate": True, "truncation_direction": "left"}, "left"),
        ({"truncate": True, "truncation_direction": "Right"}, "right"),
        ({}, "left"),
    ],
)
def test_the_bodys_own_flags_say_how_to_cut(client: httpx.Client, flags: dict[str, object], truncation: str) -> None:
    reply = answer(client, "/predict", {"inputs": LONG, "raw_scores": True, **flags})
    assert reply[0]["score"] == llama2(native(client, {"text": LONG}, truncation=truncation))


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (json.dumps({"inputs": LONG, "truncate": False}).encode(), 413, "Validation"),
        (b'{"inputs": 7}', 413, "Validation"),
        (b'{"inputs": ["a", "b", "c"]}', 422, "Tokenizer"),
        (b'{"inputs": [["a"], []]}', 422, "Tokenizer"),
        (b'{"inputs": []}', 400, "Empty"),
        (b'{"inputs": ""}', 400, "Empty"),
        (b'{"inputs"', 400, "Validation"),
    ],
)
def test_a_wrong_request_gets_teis_body_and_code(client: httpx.Client, body: bytes, status: int, kind: str) -> None:
    response = post(client, "/predict", body)
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error", "error_type"}
    assert response.json()["error_type"] == kind


def test_a_wrong_content_type_gets_teis_body_and_code(client: httpx.Client) -> None:
    response = client.post("/predict", content=b'{"inputs": "tea"}', headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert response.json()["error_type"] == "Validation"


def test_a_batch_over_the_limit_is_a_validation_error(serve: Serve) -> None:
    with serve(max_items=2) as client:
        response = post(client, "/predict", b'{"inputs": [["a"], ["b"], ["c"]]}')
        assert (response.status_code, response.json()["error_type"]) == (413, "Validation")


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (OverloadedError("full"), 429, "Overloaded"),
        (NotReadyError("loading"), 503, "Unhealthy"),
        (ShuttingDownError("bye"), 503, "Unhealthy"),
        (InferenceFailedError("fault"), 424, "Backend"),
        (NonFiniteScoreError("nan"), 424, "Backend"),
    ],
)
def test_what_the_server_cannot_do_has_teis_code(error: RequestError, status: int, kind: str) -> None:
    response = tei.write_error(error)
    assert response.status_code == status
    assert json.loads(bytes(response.body)) == {"error": error.message, "error_type": kind}


def test_overload_and_shutdown_say_when_to_come_back(serve: Serve) -> None:
    with serve() as client:
        client.app.state.service.draining = True  # type: ignore[attr-defined]
        response = post(client, "/predict", b'{"inputs": "tea"}')
        assert (response.status_code, response.json()["error_type"]) == (503, "Unhealthy")
        assert int(response.headers["retry-after"]) > 0


def test_a_deadline_that_passes_is_an_overload(hurried: httpx.Client) -> None:
    response = post(hurried, "/predict", b'{"inputs": "tea"}')
    assert (response.status_code, response.json()["error_type"]) == (429, "Overloaded")


def test_info_has_teis_keys_and_health_answers(client: httpx.Client) -> None:
    info = client.get("/info").json()
    for key in ("model_id", "model_dtype", "model_type", "max_input_length", "max_client_batch_size", "version"):
        assert key in info
    assert client.get("/health").status_code == 200
