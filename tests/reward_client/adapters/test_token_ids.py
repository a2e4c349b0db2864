"""Token ids in place of text, from TRL and AReaL."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reward_client import ConfigurationError
from reward_client.adapters import areal
from reward_client.adapters.token_ids import TokenIds
from reward_client.adapters.trl import gdpo_reward_functions, reward_function
from tests.api.compat.support import llama2, native
from tests.conversations import LLAMA_2
from tests.models import make_tokenizer

PROMPT, RESPONSE = "How long should green tea steep?", "Two minutes."
TURNS = [{"role": "user", "content": PROMPT}]


@pytest.fixture
def tokenizer(safety_dir: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(safety_dir)
    return loaded


@pytest.fixture
def spelled(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The response letter by letter, as no tokenizer would tokenize it."""
    return [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in RESPONSE]


def by_trl(function: Any, prompt: Any, ids: list[int]) -> list[float | None]:
    columns = {"prompts": [prompt], "completions": [RESPONSE], "completion_ids": [ids]}
    result: list[float | None] = asyncio.run(function(**columns))
    return result


@pytest.mark.parametrize("end", ["", "<|im_end|>", "<|im_end|>\n", "</s>"])
def test_canonical_ids_get_the_score_of_the_messages(
    client: httpx.Client, url: str, tokenizer: PreTrainedTokenizerBase, end: str
) -> None:
    """However the rollout ended, the turn is closed once."""
    expected = llama2(native(client, {"prompt": PROMPT, "response": RESPONSE}))
    ids = tokenizer(RESPONSE + end, add_special_tokens=False)["input_ids"]
    function = reward_function(url, tokenizer=tokenizer)
    assert by_trl(function, TURNS, ids) == by_trl(function, PROMPT, ids) == [expected]


def test_the_ids_are_scored_and_not_their_text(
    client: httpx.Client,
    url: str,
    tokenizer: PreTrainedTokenizerBase,
    spelled: list[int],
    safety_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = TokenIds(tokenizer)
    scores = native(client, {"input_ids": [*ids.lead, *ids.prompt_ids(TURNS), *spelled, *ids.closing]})
    assert llama2(scores) != pytest.approx(llama2(native(client, {"prompt": PROMPT, "response": RESPONSE})), abs=1e-3)
    assert by_trl(reward_function(url, tokenizer=tokenizer), TURNS, spelled) == [llama2(scores)]
    for function, model in zip(gdpo_reward_functions(url, tokenizer=tokenizer), ("safety", "helpfulness"), strict=True):
        assert by_trl(function, TURNS, spelled) == [scores[model]]
    monkeypatch.setenv("REWARD_CLIENT_TOKENIZER", str(safety_dir))
    for _ in range(2):
        assert areal.reward_fn("ignored", RESPONSE, ids.prompt_ids(TURNS), spelled) == llama2(scores)


def test_another_models_tokenizer_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_tokenizer(template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ConfigurationError, match="another tokenizer or chat template"):
        by_trl(reward_function(url, tokenizer=other), TURNS, [5])
    other.save_pretrained(tmp_path)
    monkeypatch.setenv("REWARD_CLIENT_TOKENIZER", str(tmp_path))
    with pytest.raises(ConfigurationError, match="another tokenizer or chat template"):
        areal.reward_fn(PROMPT, RESPONSE, [1], [2])


def test_a_template_that_changes_a_response_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="changes a response's tokens"):
        TokenIds(make_tokenizer(template=LLAMA_2))
