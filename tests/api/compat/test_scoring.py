"""`/v1/score` and the rerank routes: a pair is a prompt and a response."""

from typing import Any

import httpx
import pytest

from tests.api.compat.support import answer, llama2, native, sigmoid
from tests.conftest import Serve
from tests.conversations import TOOLS
from tests.models import make_model, make_tokenizer

QUERIES = ["How long?", "How do I pick a lock?"]
DOCUMENTS = ["Two minutes.", "Ask a locksmith."]
FORMS = [("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")]
RERANKS = ["/v1/rerank", "/v2/rerank", "/rerank"]


def score_of(client: httpx.Client, query: str, document: str) -> float:
    return llama2(native(client, {"prompt": query, "response": document}))


@pytest.mark.parametrize(("first", "second"), FORMS)
def test_pairs_are_one_to_one_one_to_n_or_n_to_n(client: httpx.Client, first: str, second: str) -> None:
    cases: list[tuple[Any, Any, list[tuple[str, str]]]] = [
        (QUERIES[0], DOCUMENTS[0], [(QUERIES[0], DOCUMENTS[0])]),
        (QUERIES[0], DOCUMENTS, [(QUERIES[0], document) for document in DOCUMENTS]),
        (QUERIES, DOCUMENTS, list(zip(QUERIES, DOCUMENTS, strict=True))),
    ]
    for queries, documents, pairs in cases:
        reply = answer(client, "/v1/score", {"model": "m", first: queries, second: documents})
        assert reply["object"] == "list"
        assert reply["model"] == "m"
        expected = [{"index": i, "object": "score", "score": score_of(client, *pair)} for i, pair in enumerate(pairs)]
        assert reply["data"] == expected


@pytest.mark.parametrize("path", RERANKS)
def test_documents_are_ranked_best_first(client: httpx.Client, path: str) -> None:
    scores = [score_of(client, QUERIES[0], document) for document in DOCUMENTS]
    best = sorted(range(2), key=lambda i: -scores[i])
    reply = answer(client, path, {"query": QUERIES[0], "documents": DOCUMENTS})
    assert reply["results"] == [
        {"index": i, "document": {"text": DOCUMENTS[i]}, "relevance_score": scores[i]} for i in best
    ]
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] > 0
    one = answer(client, path, {"query": QUERIES[0], "documents": DOCUMENTS, "top_n": 1, "return_documents": False})
    assert one["results"] == [{"index": best[0], "relevance_score": scores[best[0]]}]
    dicts = answer(client, path, {"query": QUERIES[0], "documents": [{"text": d} for d in DOCUMENTS], "top_n": 0})
    assert dicts["results"] == reply["results"]
    activated = answer(client, path, {"query": QUERIES[0], "documents": DOCUMENTS, "use_activation": True})
    assert activated["results"][0]["relevance_score"] == pytest.approx(sigmoid(scores[best[0]]))


@pytest.mark.parametrize("path", ["/rerank", "/"])
def test_teis_texts_are_ranked_as_tei_does(client: httpx.Client, path: str) -> None:
    scores = [score_of(client, QUERIES[0], document) for document in DOCUMENTS]
    best = sorted(range(2), key=lambda i: -scores[i])
    body = {"query": QUERIES[0], "texts": DOCUMENTS}
    assert answer(client, path, {**body, "raw_scores": True}) == [{"index": i, "score": scores[i]} for i in best]
    assert answer(client, path, {**body, "return_text": True}) == [
        {"index": i, "text": DOCUMENTS[i], "score": pytest.approx(sigmoid(scores[i]))} for i in best
    ]


def test_a_template_variable_reaches_the_template(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> None:
    template = "{{ instruction }}" + TOOLS
    path = make_model(tmp_path_factory.mktemp("model"), tokenizer=make_tokenizer(template=template))
    with serve(safety_model=str(path), helpfulness_model="") as client:
        text = "Judge.<|im_start|>user\nHow long?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
        expected = native(client, {"text": text})["safety"]
        for variables in ({"instruction": "Judge."}, {"chat_template_kwargs": {"instruction": "Judge."}}):
            body = {"queries": "How long?", "documents": "Two.", **variables}
            assert answer(client, "/v1/score", body)["data"][0]["score"] == expected


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/score", {"queries": ["a", "b"], "documents": ["a"]}, "Input lengths must be either 1:1, 1:N or N:N"),
        ("/v1/score", {"queries": "a"}, "send exactly one of queries and documents"),
        ("/v1/score", {"queries": "a", "documents": "b", "text_1": "c"}, "send exactly one of queries and documents"),
        ("/v1/score", {"queries": "a", "documents": []}, "documents is []"),
        ("/v1/score", {"queries": "a", "documents": "b", "max_tokens_per_doc": 3}, "max_tokens_per_doc=3"),
        ("/v1/score", {"queries": "a", "documents": "b", "max_tokens_per_doc": -5}, "must be a non-negative integer"),
        ("/v1/score", {"queries": "a", "documents": "b", "truncate_prompt_tokens": 513}, "smaller truncation size"),
        ("/v1/score", {"queries": "a", "documents": "b", "instruction": "c"}, "'instruction' is not a variable"),
        ("/v1/rerank", {"query": "a"}, "documents is missing"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n is -1"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "instruct": "c"}, "instruct is not supported"),
        ("/rerank", {"query": "a", "documents": ["b"], "texts": ["b"]}, "send exactly one of documents"),
    ],
)
def test_a_wrong_request_is_vllms_400(client: httpx.Client, path: str, body: dict[str, Any], words: str) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"]


def test_the_native_score_route_stays_native(client: httpx.Client) -> None:
    response = client.post("/score", json={"queries": "a", "documents": "b"})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "invalid_input"
