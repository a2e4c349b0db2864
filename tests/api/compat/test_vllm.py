from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerBase

from tests.api.compat.support import LONG, answer, llama2, native, post, sigmoid
from tests.conftest import Serve

TEXT = "How long should green tea steep? Two minutes."
VERL = (
    b'{"model": "/checkpoints/Skywork-Reward", "input": "How long should green tea steep? Two minutes.", '
    b'"activation": false}'
)


def test_classify_answers_verl_in_vllms_shape(client: httpx.Client) -> None:
    reply = answer(client, "/classify", VERL)
    num_tokens = reply["usage"]["prompt_tokens"]
    assert reply.pop("id").startswith("classify-")
    assert reply.pop("created") > 1_700_000_000
    assert num_tokens > 10
    assert 0 <= reply["usage"].pop("prompt_tokens_details")["cached_tokens"] <= num_tokens
    assert reply == {
        "object": "list",
        "model": "/checkpoints/Skywork-Reward",
        "data": [{"index": 0, "label": "LABEL_0", "probs": [llama2(native(client, {"text": TEXT}))], "num_classes": 1}],
        "usage": {
            "prompt_tokens": num_tokens,
            "total_tokens": num_tokens,
            "completion_tokens": 0,
        },
    }


def test_input_is_a_text_texts_token_ids_or_lists_of_them(
    client: httpx.Client, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    expected = llama2(native(client, {"text": TEXT}))
    for given in (TEXT, [TEXT], ids, [ids]):
        data = answer(client, "/classify", {"input": given})["data"]
        assert [entry["probs"] for entry in data] == [[expected]]


def test_a_batch_keeps_its_order(client: httpx.Client) -> None:
    texts = [TEXT, "tea", "lock"]
    data = answer(client, "/classify", {"input": texts})["data"]
    assert [entry["index"] for entry in data] == [0, 1, 2]
    assert [entry["probs"][0] for entry in data] == [llama2(native(client, {"text": text})) for text in texts]


@pytest.mark.parametrize("content", ["Two minutes.", [{"type": "text", "text": "Two minutes."}]])
def test_messages_take_the_chat_template(client: httpx.Client, content: Any) -> None:
    messages = [{"role": "user", "content": "How long?"}, {"role": "assistant", "content": content}]
    plain = [messages[0], {"role": "assistant", "content": "Two minutes."}]
    data = answer(client, "/classify", {"model": "safety", "messages": messages, "tools": []})["data"]
    assert data[0]["probs"] == [native(client, {"messages": plain})["safety"]]


def test_a_text_with_bos_and_one_without_get_exactly_one(
    client: httpx.Client, tokenizer: PreTrainedTokenizerBase
) -> None:
    """verl strips BOS before it sends, chat-rendered text from others has it."""
    data = answer(client, "/classify", {"input": [TEXT, f"<s>{TEXT}"]})["data"]
    ids = tokenizer(TEXT)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert data[0]["probs"] == data[1]["probs"] == [llama2(native(client, {"input_ids": ids}))]


@pytest.mark.parametrize("path", ["/classify", "/pooling"])
@pytest.mark.parametrize("flag", ["use_activation", "activation", "softmax"])
def test_each_activation_flag_asks_for_the_probability(client: httpx.Client, path: str, flag: str) -> None:
    score = llama2(native(client, {"text": TEXT}))
    for asked, expected in ((True, sigmoid(score)), (False, score)):
        entry = answer(client, path, {"input": TEXT, flag: asked})["data"][0]
        assert entry.get("probs", entry.get("data")) == [pytest.approx(expected)]


def test_scores_are_raw_unless_an_activation_is_asked_for(client: httpx.Client) -> None:
    assert answer(client, "/classify", {"input": TEXT})["data"][0]["probs"] == [llama2(native(client, {"text": TEXT}))]


def test_the_activation_setting_restores_the_silent_sigmoid_of_vllm_alone(serve: Serve) -> None:
    with serve(compat_activation=True) as client:
        score = llama2(native(client, {"text": TEXT}))
        assert answer(client, "/classify", {"input": TEXT})["data"][0]["probs"] == [pytest.approx(sigmoid(score))]
        assert answer(client, "/pooling", {"input": TEXT})["data"][0]["data"] == [pytest.approx(sigmoid(score))]
        raw = {"input": TEXT, "use_activation": False}
        assert answer(client, "/classify", raw)["data"][0]["probs"] == [score]
        assert answer(client, "/classify", {"text": TEXT})["embedding"] == [score]
        assert answer(client, "/v1/embeddings", {"input": TEXT})["data"][0]["embedding"] == [score]


def test_pooling_and_embeddings_carry_the_score_in_their_own_shapes(client: httpx.Client) -> None:
    score = llama2(native(client, {"text": TEXT}))
    body = b'{"model": "/m", "input": "How long should green tea steep? Two minutes."}'
    pooled, embedded = answer(client, "/pooling", body), answer(client, "/v1/embeddings", body)
    assert pooled["data"] == [{"index": 0, "object": "pooling", "data": [score]}]
    assert embedded["data"] == [{"index": 0, "object": "embedding", "embedding": [score]}]
    assert pooled["model"] == embedded["model"] == "/m"
    assert pooled["object"] == embedded["object"] == "list"


def test_truncation_follows_the_bodys_own_flags(client: httpx.Client) -> None:
    for flags, truncation in (
        ({"truncate_prompt_tokens": -1}, "left"),
        ({"truncate_prompt_tokens": -1, "truncation_side": "right"}, "right"),
        ({}, "left"),
    ):
        data = answer(client, "/classify", {"input": LONG + "end", **flags})["data"]
        assert data[0]["probs"] == [llama2(native(client, {"text": LONG + "end"}, truncation=truncation))]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"input": "a"', "not JSON"),
        (b'{"model": "m"}', "exactly one of input and messages"),
        (b'{"input": []}', "input is empty"),
        (b'{"input": "a", "messages": [{"role": "user", "content": "a"}]}', "exactly one of input and messages"),
        (b'{"input": [1, 999999]}', "token id 999999"),
        (
            b'{"input": "a", "truncate_prompt_tokens": 513}',
            "truncate_prompt_tokens value (513) is greater than max_model_len",
        ),
        (b'{"input": "a", "truncate_prompt_tokens": 0}', "truncate_prompt_tokens is 0"),
    ],
)
def test_a_wrong_request_gets_vllms_400(client: httpx.Client, body: bytes, words: str) -> None:
    response = post(client, "/classify", body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert words in error.pop("message")
    assert error == {"type": "BadRequestError", "param": None, "code": 400}


def test_a_deadline_that_passes_is_vllms_504(hurried: httpx.Client) -> None:
    response = post(hurried, "/classify", VERL)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == 504
    assert response.json()["error"]["type"] == "InternalServerError"


def test_a_body_over_the_limit_is_413_in_vllms_body(serve: Serve) -> None:
    with serve(max_body_mb=0.001) as client:
        response = post(client, "/classify", b'{"input": "' + b"a" * 2000 + b'"}')
        assert response.status_code == 413
        assert response.json()["error"]["code"] == 413
