"""Tool calls and thoughts are part of a turn: rendered where the chat template renders them, in every way in."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerBase

from reward_client.adapters.source import item_of
from tests.api.asking import ask
from tests.api.compat.support import native
from tests.conftest import Serve
from tests.conversations import TOOL_TURNS, TOOLS
from tests.models import make_model, make_tokenizer

CALL_TURNS = TOOL_TURNS[:2]
THINKING: list[dict[str, Any]] = [
    {"role": "user", "content": "2?"},
    {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer(template=TOOLS)


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[httpx.Client]:
    path = make_model(tmp_path_factory.mktemp("tools"), tokenizer=tokenizer)
    with serve(safety_model=str(path), helpfulness_model="") as client:
        yield client


def expected(client: httpx.Client, tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]]) -> float:
    """The score of what transformers renders."""
    ids = tokenizer(str(tokenizer.apply_chat_template(turns, tokenize=False)))["input_ids"]
    return native(client, {"input_ids": ids})["safety"]


def as_openai(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As OpenAI's clients write them: null content beside calls, arguments as JSON in a string."""
    written = json.loads(json.dumps(turns))
    for turn in written:
        for call in turn.get("tool_calls", []):
            turn["content"] = None
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return list(written)


@pytest.mark.parametrize("turns", [TOOL_TURNS, CALL_TURNS, THINKING], ids=["answered", "a call is last", "thoughts"])
def test_they_are_scored_as_transformers_renders_them(
    client: httpx.Client, tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]]
) -> None:
    score = expected(client, tokenizer, turns)
    without = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    assert score != expected(client, tokenizer, without)
    for messages in (turns, as_openai(turns)):
        assert native(client, {"messages": messages}) == {"safety": score}
        pair = {"chosen_messages": messages, "rejected_messages": without}
        result = ask(client, "/compare", {"pairs": [pair], "model": "safety"})["results"][0]
        assert result["chosen_score"] == score != result["rejected_score"]
        item = {"messages": messages, "is_safety": True}
        assert (
            ask(client, "/ppo-reward", {"items": [item], "whiten": {"mode": "none"}})["results"][0]["reward"] == score
        )
        for path, key in (("/classify", "probs"), ("/pooling", "data")):
            assert ask(client, path, {"messages": messages})["data"][0][key] == [score]
        if messages[-1]["content"] is not None and len(messages) != len(THINKING):
            rollout = {"prompt": messages[:-1], "response": messages[-1]["content"]}
            assert client.post("/slime", json=rollout).json() == score


def test_the_trainers_adapters_send_them(client: httpx.Client, tokenizer: PreTrainedTokenizerBase) -> None:
    cases: list[list[dict[str, Any]]] = [TOOL_TURNS, THINKING]
    for turns in cases:
        item = item_of(turns[:1], turns[1:])
        assert native(client, item) == {"safety": expected(client, tokenizer, turns)}
