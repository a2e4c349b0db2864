import httpx
import pytest
from transformers import PreTrainedTokenizerBase

from tests.api.compat.support import LONG, answer, llama2, native, post

TEXT = "How long should green tea steep? Two minutes."


def test_a_single_text_gets_an_object(client: httpx.Client, tokenizer: PreTrainedTokenizerBase) -> None:
    body = b'{"model": "Skywork/Skywork-Reward", "text": "How long should green tea steep? Two minutes."}'
    reply = answer(client, "/classify", body)
    assert reply["embedding"] == [llama2(native(client, {"text": TEXT}))]
    assert reply["meta_info"]["prompt_tokens"] == len(tokenizer(TEXT)["input_ids"])
    assert reply["meta_info"]["id"]


def test_a_list_of_texts_gets_a_list(client: httpx.Client) -> None:
    reply = answer(client, "/classify", b'{"model": "m", "text": ["tea", "lock"]}')
    assert [entry["embedding"] for entry in reply] == [[llama2(native(client, {"text": t}))] for t in ("tea", "lock")]
    assert isinstance(answer(client, "/classify", {"text": ["tea"]}), list)


def test_input_ids_are_one_sequence_or_a_list_of_them(client: httpx.Client, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    expected = [llama2(native(client, {"input_ids": ids}))]
    assert answer(client, "/classify", {"input_ids": ids})["embedding"] == expected
    assert [entry["embedding"] for entry in answer(client, "/classify", {"input_ids": [ids, ids]})] == [expected] * 2


def test_the_same_path_dispatches_on_the_field(client: httpx.Client) -> None:
    vllm, sglang = answer(client, "/classify", {"input": TEXT}), answer(client, "/classify", {"text": TEXT})
    assert vllm["data"][0]["probs"] == sglang["embedding"]


def test_the_rendered_text_of_a_judge_query_keeps_its_one_bos(client: httpx.Client) -> None:
    both = answer(client, "/classify", {"text": [TEXT, f"<s>{TEXT}"]})
    assert both[0]["embedding"] == both[1]["embedding"]


def test_a_long_text_says_that_it_was_cut(client: httpx.Client) -> None:
    reply = answer(client, "/classify", {"text": LONG})
    assert reply["meta_info"]["truncated"] is True
    assert reply["meta_info"]["prompt_tokens"] == 512


@pytest.mark.parametrize("body", [b'{"text": "a", "input": "a"}', b'{"text": "a", "input_ids": [1]}', b'{"text": []}'])
def test_a_wrong_request_is_400_with_a_message(client: httpx.Client, body: bytes) -> None:
    response = post(client, "/classify", body)
    assert response.status_code == 400
    assert "send" in response.json()["error"]["message"]
