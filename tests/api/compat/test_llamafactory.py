"""The exact call of LLaMA-Factory's PPO trainer, which reads `scores` and looks at no status."""

import httpx
import pytest

from tests.api.compat.support import LONG, answer, llama2, native, post

CHAT = "<|im_start|>user\nTea?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"
TURNS = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]


def test_rendered_conversations_get_the_scores_of_their_messages(client: httpx.Client) -> None:
    reply = answer(client, "/v1/score/evaluation", {"model": "model", "messages": [CHAT, f"<s>{CHAT}", "Tea? Yes."]})
    expected = llama2(native(client, {"messages": TURNS}))
    assert reply["scores"][:2] == [expected, expected]
    assert len(reply["scores"]) == 3
    assert reply["model"] == "model"
    assert answer(client, "/v1/score/evaluation", {"model": "model", "messages": []})["scores"] == []


def test_an_over_long_text_loses_its_oldest_tokens(client: httpx.Client) -> None:
    reply = answer(client, "/v1/score/evaluation", {"model": "safety", "messages": [f"<s>{LONG}"]})
    assert reply["scores"] == [native(client, {"text": f"<s>{LONG}"}, truncation="left")["safety"]]


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"{}", b'{"messages": "text"}', b'{"messages": [1]}', b'{"messages": [""]}']
)
def test_no_error_body_can_be_read_as_scores(client: httpx.Client, body: bytes) -> None:
    response = post(client, "/v1/score/evaluation", body)
    assert response.status_code in (400, 422)
    assert "scores" not in response.json()


def test_a_service_without_its_model_gives_no_scores(hurried: httpx.Client) -> None:
    response = hurried.post("/v1/score/evaluation", json={"model": "model", "messages": [CHAT]})
    assert response.status_code == 504
    assert "scores" not in response.json()
