"""What clients ask of a server before they send work, and the token ids that it would score."""

import asyncio
from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerBase

from app import __version__
from app.main import create_app
from app.settings import Settings
from tests.api.compat.support import answer, llama2, native, sigmoid
from tests.conftest import Serve

TEXT = "How long should green tea steep?"
MESSAGES = [{"role": "user", "content": "How long?"}, {"role": "assistant", "content": "Two minutes."}]
PROBES = ["/v1/models", "/v1/models/safety", "/ping", "/health_generate", "/get_model_info", "/model_info"]


def test_the_models_are_the_names_that_select_the_default_first(
    client: httpx.Client, only_helpfulness: httpx.Client, serve: Serve
) -> None:
    reply = client.get("/v1/models").json()
    assert reply["object"] == "list"
    assert [each["id"] for each in reply["data"]] == ["llama2", "safety", "helpfulness"]
    assert {each["max_model_len"] for each in reply["data"]} == {512}
    assert [each["id"] for each in only_helpfulness.get("/v1/models").json()["data"]] == ["helpfulness"]
    with serve(compat_model="helpfulness") as other:
        assert other.get("/v1/models").json()["data"][0]["id"] == "helpfulness"
    for each in reply["data"]:
        assert answer(client, "/classify", {"model": each["id"], "input": "a"})["model"] == each["id"]
        assert client.get(f"/v1/models/{each['id']}").json()["root"] == each["root"]
    assert client.get("/v1/models/gpt-4").status_code == 404


def test_the_version_is_this_servers(client: httpx.Client) -> None:
    assert client.get("/version").json() == {"version": __version__}


@pytest.mark.parametrize(("method", "path"), [("GET", "/ping"), ("POST", "/ping"), ("GET", "/health_generate")])
def test_a_health_check_is_an_empty_200(client: httpx.Client, method: str, path: str) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("path", PROBES)
def test_nothing_is_well_before_the_models_are_loaded(path: str) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(Settings(_env_file=None)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    assert asyncio.run(ask()).status_code == 503


def test_a_ping_needs_no_key_and_the_others_do(serve: Serve) -> None:
    with serve(api_keys=("secret",)) as client:
        assert client.get("/ping").status_code == 200
        for path in ("/v1/models", "/version", "/health_generate", "/model_info"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"authorization": "Bearer secret"}).status_code == 200


def test_sglangs_clients_learn_what_the_model_is(client: httpx.Client) -> None:
    info = client.get("/get_model_info").json()
    assert info == client.get("/model_info").json()
    assert info["is_generation"] is False
    assert info["served_model_name"] == "llama2"
    assert info["model_type"] == "llama"
    assert info["model_path"] == client.get("/info").json()["models"]["helpfulness"]["model_id"]


def test_teis_clients_learn_what_tei_would_say(client: httpx.Client, serve: Serve) -> None:
    info = client.get("/info").json()
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    assert info["model_type"] == {"reranker": labels}
    assert info["served_model_name"] == "llama2"
    assert info["auto_truncate"] is True
    with serve(compat_truncation="error") as strict:
        assert strict.get("/info").json()["auto_truncate"] is False


def test_the_root_is_teis_predict(client: httpx.Client) -> None:
    score = llama2(native(client, {"text": TEXT}))
    assert answer(client, "/", {"inputs": TEXT}) == [{"score": pytest.approx(sigmoid(score)), "label": "LABEL_0"}]
    pairs = {"inputs": [["How long?", "Two."], ["tea"]], "raw_scores": True, "truncate": True}
    assert answer(client, "/", pairs) == answer(client, "/predict", pairs)
    response = client.post("/", json={"inputs": TEXT, "query": "a"})
    assert (response.status_code, response.json()["error_type"]) == (413, "Validation")


def test_v1_classify_is_classify(client: httpx.Client) -> None:
    replies = [
        answer(client, path, {"model": "safety", "input": [TEXT, "tea"]}) for path in ("/classify", "/v1/classify")
    ]
    assert replies[0]["data"] == replies[1]["data"]


@pytest.mark.parametrize("add_special_tokens", [None, True, False])
def test_tokens_of_a_text_are_those_that_are_scored(
    client: httpx.Client, tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool | None
) -> None:
    ids = tokenizer(TEXT, add_special_tokens=add_special_tokens is not False)["input_ids"]
    reply = answer(client, "/tokenize", {"prompt": TEXT, "add_special_tokens": add_special_tokens})
    assert (reply["tokens"], reply["count"], reply["max_model_len"]) == (ids, len(ids), 512)
    assert reply["token_strs"] is None
    body = {"prompt": [TEXT, "tea"], "add_special_tokens": add_special_tokens, "return_token_strs": True}
    many = answer(client, "/tokenize", body)
    assert many["tokens"][0] == ids
    assert many["count"] == [len(each) for each in many["tokens"]]
    assert many["token_strs"][0] == tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": False}, {"continue_final_message": True}])
def test_tokens_of_messages_are_the_templates(
    client: httpx.Client, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> None:
    """vLLM adds the generation prompt on this route unless it is told not to."""
    given = {"add_generation_prompt": not options} | options
    text = str(tokenizer.apply_chat_template(MESSAGES, tokenize=False, **given))
    reply = answer(client, "/tokenize", {"model": "safety", "messages": MESSAGES, **options})
    assert reply["tokens"] == tokenizer(text)["input_ids"]


def test_a_text_over_the_models_limit_is_counted(client: httpx.Client) -> None:
    reply = answer(client, "/tokenize", {"prompt": "green tea, " * 3000})
    assert reply["count"] == len(reply["tokens"]) > 9000
    assert reply["max_model_len"] == 512


def test_a_text_that_the_models_see_differently_needs_a_name(
    serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tests.models import make_model, make_tokenizer

    path = make_model(tmp_path_factory.mktemp("model"), tokenizer=make_tokenizer(add_bos=False))
    with serve(helpfulness_model=str(path)) as client:
        response = client.post("/tokenize", json={"prompt": TEXT})
        assert response.status_code == 400
        assert "name one of them as model" in response.json()["error"]["message"]
        counts = [
            answer(client, "/tokenize", {"prompt": TEXT, "model": name})["count"] for name in ("safety", "helpfulness")
        ]
        assert counts[0] == counts[1] + 1


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": MESSAGES}, {"inputs": "a"}, {"prompt": []}])
def test_a_wrong_request_is_400(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("/tokenize", json=body).status_code == 400
