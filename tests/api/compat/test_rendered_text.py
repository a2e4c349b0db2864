"""Every dialect scores a conversation as the native route scores its messages, however the trainer rendered it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.api.compat.support import answer, llama2, native
from tests.api.compat.test_dialects import score_in
from tests.conftest import Serve
from tests.conversations import CHATML_BOS, CONVERSATIONS
from tests.models import make_model, make_tokenizer

TOKENIZERS: dict[str, dict[str, Any]] = {
    "adds the bos": {},
    "the template has the bos": {"template": CHATML_BOS, "add_bos": False},
    "its bos opens each turn, and it adds none": {
        "add_bos": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
    },
    "adds bos and eos": {"add_eos": True},
}
END = "<|im_end|>"


@pytest.fixture(scope="module", params=TOKENIZERS)
def served(
    request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, PreTrainedTokenizerBase]]:
    tokenizer = make_tokenizer(**TOKENIZERS[request.param])
    paths = [make_model(tmp_path_factory.mktemp("model"), seed=seed, tokenizer=tokenizer) for seed in (1, 2)]
    with serve(safety_model=str(paths[0]), helpfulness_model=str(paths[1])) as client:
        yield client, tokenizer


def bodies(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[tuple[str, dict[str, Any]]]:
    """A conversation as each trainer or client sends it."""
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
    prompt = str(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True))
    response = messages[-1]["content"] + END
    verl = whole.removeprefix(str(tokenizer.bos_token))
    return [
        ("/get_reward", {"query": [prompt + response], "prompts": [prompt], "labels": [""]}),
        ("/classify", {"model": "/checkpoints/rm", "input": verl, "activation": False}),
        ("/classify", {"model": "m", "text": [verl]}),
        ("/v1/embeddings", {"model": "m", "input": verl}),
        ("/pooling", {"input": [whole]}),
        ("/pooling", {"messages": messages}),
        ("/predict", {"inputs": whole, "raw_scores": True}),
        ("/slime", {"prompt": prompt, "response": response, "label": "42"}),
        ("/slime", {"prompt": messages[:-1], "response": response, "label": None}),
    ]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_each_dialect_scores_what_the_template_renders(
    served: tuple[httpx.Client, PreTrainedTokenizerBase], conversation: str
) -> None:
    client, tokenizer = served
    messages = CONVERSATIONS[conversation]
    scores = native(client, {"messages": messages}, truncation="left")
    for path, body in bodies(tokenizer, messages):
        assert score_in(answer(client, path, body)) == llama2(scores), (path, body)
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False)).strip()
    assert native(client, {"rendered": rendered}, truncation="left") == scores


def test_as_sent_ends_where_the_text_ends(serve: Serve, safety_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(safety_dir)
    messages = CONVERSATIONS["one turn"]
    prompt = "<|im_start|>user\nHow long should green tea steep?<|im_end|>\n<|im_start|>assistant\n"
    response = messages[-1]["content"] + END
    with serve(compat_close="as_sent") as client:
        scores = native(client, {"input_ids": tokenizer(prompt + response)["input_ids"]})
        assert scores != native(client, {"messages": messages})
        for path, body in (
            ("/get_reward", {"query": [prompt + response]}),
            ("/classify", {"input": prompt + response}),
            ("/slime", {"prompt": prompt, "response": response}),
            ("/slime", {"prompt": messages[:1], "response": response}),
        ):
            assert score_in(answer(client, path, body)) == llama2(scores), path


def test_token_ids_are_scored_as_they_are(client: httpx.Client, tokenizer: PreTrainedTokenizerBase) -> None:
    """A trainer's own ids cannot drift as decoded and encoded text can."""
    ids = tokenizer("How long? Two minutes.")["input_ids"][:-1]
    expected = llama2(native(client, {"input_ids": ids}))
    reply = answer(client, "/get_reward", {"query": ["another text"], "input_ids": [ids], "labels": [""]})
    assert reply["rewards"] == answer(client, "/get_reward", {"input_ids": [ids]})["rewards"] == [expected]
    for texts in ({}, {"prompt": "another", "response": "text"}):
        assert answer(client, "/slime", {**texts, "input_ids": ids}) == expected


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/get_reward", {"query": ["a"], "input_ids": [[1], [2]]}, "input_ids has 2 entries and query 1"),
        ("/get_reward", {"labels": []}, "query is missing"),
        ("/slime", {"prompt": "a"}, "response is missing"),
        ("/slime", {"response": "a"}, "prompt is missing"),
        ("/slime", {"input_ids": [999999]}, "token id 999999"),
    ],
)
def test_what_has_neither_texts_nor_ids_is_an_error(
    client: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 422
    assert words in response.text


def test_text_that_no_template_rendered_stays_as_it_is(client: httpx.Client) -> None:
    for text in ("How long? Two minutes.", f"How long? Two minutes.{END}", "<|im_start|>user\nHow long?<|im_end|>\n"):
        assert native(client, {"rendered": text}) == native(client, {"text": text})
