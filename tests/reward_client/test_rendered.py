"""Adapters whose trainers hand over rendered text get the score of the conversation's messages."""

from collections.abc import Iterator

import httpx
import pytest
from transformers import AutoTokenizer

from reward_client import RewardClient
from reward_client.adapters import areal, openrlhf, source
from tests.api.compat.support import llama2, native
from tests.conversations import CONVERSATIONS


@pytest.fixture(autouse=True)
def environment(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("REWARD_CLIENT_URL", str(client.base_url))
    monkeypatch.setenv("REWARD_CLIENT_TRUNCATION", "left")
    yield
    for key, own in list(source._clients.items()):
        if isinstance(own, RewardClient):
            own.close()
            del source._clients[key]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_a_rollout_that_ends_at_the_end_of_turn_is_scored_as_its_messages(
    client: httpx.Client, safety_dir: str, conversation: str
) -> None:
    messages = CONVERSATIONS[conversation]
    tokenizer = AutoTokenizer.from_pretrained(safety_dir)
    prompt = str(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True))
    completion = f"{messages[-1]['content']}<|im_end|>"
    expected = llama2(native(client, {"messages": messages}, truncation="left"))
    assert areal.reward_fn(prompt, completion, [], []) == expected
    assert openrlhf.reward_func([prompt + completion], [prompt], [""])["rewards"] == [expected]
