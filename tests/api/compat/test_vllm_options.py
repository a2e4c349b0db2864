"""vLLM's options on the pooling routes: each changes the answer as vLLM says, or is refused in its words."""

import base64
import json
import struct
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from app.api.compat.dialect import Selected
from app.api.compat.vllm.encoding import Encoding
from app.api.compat.vllm.pooling import values_of
from app.errors import InvalidInputError
from tests.api.compat.support import LONG, answer, llama2, native, sigmoid
from tests.conftest import Serve

TEXT = "How long should green tea steep? Two minutes."
MESSAGES = [{"role": "user", "content": "How long?"}, {"role": "assistant", "content": "Two minutes."}]
TYPES = {
    "float32": (torch.float32, "4"),
    "float16": (torch.float16, "2"),
    "bfloat16": (torch.bfloat16, "2"),
    "fp8_e4m3": (torch.float8_e4m3fn, "1"),
    "fp8_e5m2": (torch.float8_e5m2, "1"),
}


def refusal(client: httpx.Client, path: str, body: dict[str, Any]) -> str:
    response = client.post(path, json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("BadRequestError", 400)
    return str(error["message"])


def unpacked(content: bytes, dtype: str, endianness: str) -> list[float]:
    kind, size = TYPES[dtype]
    order = {"native": "=", "big": ">", "little": "<"}[endianness]
    words = np.frombuffer(content, f"{order}u{size}").astype(f"=u{size}")
    return [float(each) for each in torch.from_numpy(words).view(kind).float()]


@pytest.mark.parametrize("endianness", ["native", "big", "little"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("path", ["/pooling", "/v1/embeddings"])
def test_scores_are_encoded_as_they_were_asked_for(
    client: httpx.Client, path: str, dtype: str, endianness: str
) -> None:
    texts = [TEXT, "tea"]
    key = "data" if path == "/pooling" else "embedding"
    scores = [entry[key][0] for entry in answer(client, path, {"input": texts})["data"]]
    expected = [float(torch.tensor(score).to(TYPES[dtype][0]).float()) for score in scores]
    options = {"input": texts, "embed_dtype": dtype, "endianness": endianness}
    encoded = [entry[key] for entry in answer(client, path, {**options, "encoding_format": "base64"})["data"]]
    assert [unpacked(base64.b64decode(each), dtype, endianness) for each in encoded] == [[each] for each in expected]

    response = client.post(path, json={**options, "encoding_format": "bytes"})
    assert response.headers["content-type"] == "application/octet-stream"
    metadata = json.loads(response.headers["metadata"])
    assert metadata["usage"]["prompt_tokens"] > 0
    for i, item in enumerate(metadata["data"]):
        assert (item["index"], item["embed_dtype"], item["endianness"], item["shape"]) == (i, dtype, endianness, [1])
        assert unpacked(response.content[item["start"] : item["end"]], dtype, endianness) == [expected[i]]
    bare = client.post(path, json={**options, "encoding_format": "bytes_only"})
    assert bare.content == response.content
    assert "metadata" not in bare.headers


def test_base64_is_what_openais_clients_decode(client: httpx.Client) -> None:
    """Little-endian float32, as openai-node's Float32Array and openai-python's numpy read it."""
    encoded = answer(client, "/v1/embeddings", {"input": TEXT, "encoding_format": "base64"})["data"][0]["embedding"]
    (score,) = struct.unpack("<f", base64.b64decode(encoded))
    assert score == pytest.approx(llama2(native(client, {"text": TEXT})), rel=1e-6)


def test_token_classify_gives_the_score_after_every_token(client: httpx.Client) -> None:
    body = {"items": [{"text": TEXT}], "models": ["safety"], "token_scores": True}
    expected = client.post("/score", json=body).json()["results"][0]["scores"]["safety"]["token_scores"]
    asked = {"model": "safety", "input": [TEXT, "tea"], "task": "token_classify"}
    data = answer(client, "/pooling", asked)["data"]
    assert data[0]["data"] == [[score] for score in expected]
    activated = answer(client, "/pooling", {**asked, "use_activation": True})["data"][0]["data"]
    assert activated == [[pytest.approx(sigmoid(score))] for score in expected]
    response = client.post("/pooling", json={**asked, "encoding_format": "bytes"})
    assert json.loads(response.headers["metadata"])["data"][0]["shape"] == [len(expected), 1]
    assert answer(client, "/pooling", {**asked, "task": "classify"})["data"][0]["data"] == [expected[-1]]


def test_scores_that_are_probabilities_get_no_sigmoid() -> None:
    result = Selected(0.75, 2, False, {}, 0, token_scores=[0.25, 0.75], is_probability=True)
    assert values_of(result, activation=True, wants_tokens=True) == [[0.25], [0.75]]
    assert values_of(result, activation=True, wants_tokens=False) == [0.75]


def test_a_limit_in_tokens_is_followed_up_to_the_models(client: httpx.Client) -> None:
    for path in ("/classify", "/pooling", "/v1/embeddings"):
        for limit in (5, 511, 512):
            reply = answer(client, path, {"input": LONG, "truncate_prompt_tokens": limit})
            assert reply["usage"]["prompt_tokens"] == limit
        message = refusal(client, path, {"input": LONG, "truncate_prompt_tokens": 513})
        assert "greater than max_model_len (512). Please request a smaller truncation size." in message
        assert "at least 1" in refusal(client, path, {"input": LONG, "truncate_prompt_tokens": 0})


def test_a_limit_keeps_the_side_that_was_asked_for(client: httpx.Client, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    for side, kept in (("left", [bos, *ids[-6:]]), ("right", [bos, *ids[:6]])):
        body = {"input": TEXT, "truncate_prompt_tokens": 7, "truncation_side": side}
        expected = llama2(native(client, {"input_ids": kept}))
        assert answer(client, "/classify", body)["data"][0]["probs"] == [expected]


@pytest.mark.parametrize("path", ["/classify", "/pooling", "/v1/embeddings"])
def test_special_tokens_are_added_unless_they_are_not_wanted(
    client: httpx.Client, tokenizer: PreTrainedTokenizerBase, path: str
) -> None:
    bare, full = (tokenizer(TEXT, add_special_tokens=flag)["input_ids"] for flag in (False, True))
    for flag, ids in ((False, bare), (True, full), (None, full)):
        entry = answer(client, path, {"input": TEXT, "add_special_tokens": flag})["data"][0]
        value = entry.get("probs") or entry.get("data") or entry.get("embedding")
        assert value == [llama2(native(client, {"input_ids": ids}))]


@pytest.mark.parametrize("options", [{"add_generation_prompt": True}, {"continue_final_message": True}])
def test_messages_are_rendered_as_they_were_asked_to_be(
    client: httpx.Client, tokenizer: PreTrainedTokenizerBase, options: dict[str, bool]
) -> None:
    text = str(tokenizer.apply_chat_template(MESSAGES, tokenize=False, **options))  # type: ignore[arg-type] # two flags
    expected = native(client, {"text": text})
    assert expected != native(client, {"messages": MESSAGES})
    for path in ("/classify", "/pooling", "/v1/embeddings"):
        entry = answer(client, path, {"messages": MESSAGES, **options})["data"][0]
        assert (entry.get("probs") or entry.get("data") or entry.get("embedding")) == [llama2(expected)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "embed"}, "Unsupported task: 'embed' Supported tasks: ('classify', 'token_classify')"),
        ({"task": "token_embed"}, "Unsupported task: 'token_embed'"),
        ({"task": "plugin"}, "No IOProcessor plugin installed."),
        ({"task": "score"}, "`score` task was removed; use `classify` instead."),
        ({"task": "encode"}, "`encode` task was removed"),
        ({"dimensions": 1}, "dimensions is currently not supported (received dimensions=1)"),
        ({"encoding_format": "hex"}, "encoding_format is 'hex'"),
        ({"embed_dtype": "int4"}, "embed_dtype is 'int4'"),
        ({"endianness": "middle"}, "endianness is 'middle'"),
        ({"normalize": True}, "Parameter `normalize` was removed; use `use_activation` instead."),
        ({"padding": "max_length"}, "padding='max_length' is not supported"),
        ({"priority": 1}, "priority=1 needs priority scheduling"),
        ({"cache_salt": "s"}, "cache_salt is not supported"),
        ({"mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs are not supported"),
        ({"media_io_kwargs": {"a": {}}}, "media_io_kwargs are not supported"),
        ({"chat_template": "{{ messages }}"}, "Refused request with untrusted chat template."),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs is for messages"),
        ({"add_generation_prompt": True}, "add_generation_prompt is for messages"),
        ({"tools": [{"type": "function"}]}, "tools is for messages"),
    ],
)
def test_what_is_not_honoured_is_refused_in_vllms_words(
    client: httpx.Client, options: dict[str, Any], words: str
) -> None:
    assert words in refusal(client, "/pooling", {"input": TEXT, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
        ),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "Found unexpected chat template kwargs from request"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "Found unexpected chat template kwargs from request"),
        ({"tools": [{"type": "function"}]}, "tools, which the checkpoint's chat template does not render"),
    ],
)
def test_what_a_template_cannot_do_is_refused(client: httpx.Client, options: dict[str, Any], words: str) -> None:
    assert words in refusal(client, "/classify", {"messages": MESSAGES, **options})


def test_options_that_change_nothing_are_accepted(client: httpx.Client) -> None:
    options = {
        "padding": "do_not_pad",
        "priority": 0,
        "mm_processor_kwargs": {},
        "media_io_kwargs": {},
        "user": "me",
        "tools": [],
        "chat_template_kwargs": {},
        "add_generation_prompt": False,
        "continue_final_message": False,
    }
    assert (
        answer(client, "/pooling", {"input": TEXT, **options})["data"]
        == answer(client, "/pooling", {"input": TEXT})["data"]
    )


def test_a_request_id_comes_back(client: httpx.Client) -> None:
    assert answer(client, "/classify", {"input": TEXT, "request_id": "r-1"})["id"] == "classify-r-1"


def test_a_score_that_a_type_cannot_hold_is_an_error() -> None:
    with pytest.raises(InvalidInputError, match="does not fit float16"):
        Encoding(encoding_format="base64", embed_dtype="float16").packed([1e6])


def test_without_truncation_the_words_are_those_that_clients_look_for(serve: Serve) -> None:
    with serve(compat_truncation="error") as client:
        assert "Please reduce the length of the input prompt" in refusal(client, "/classify", {"input": LONG})
