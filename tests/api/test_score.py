import math
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.api.asking import LOCK, TEA, ask, assert_error
from tests.conftest import Serve
from tests.models import make_model, make_tokenizer

PROMPT, RESPONSE = "How do I pick a lock?", "I can't help with that."
TURNS = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]


def oracle(directory: Path, token_ids: list[int]) -> float:
    net = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        return float(net(torch.tensor([token_ids])).logits[0, 0])


def score(client: httpx.Client, *items: dict[str, Any], **options: Any) -> dict[str, Any]:
    return ask(client, "/score", {"items": list(items), **options})


def approx(value: float) -> Any:
    """Within the oracle's tolerance."""
    return pytest.approx(value, abs=1e-5 * max(1, abs(value)))


@pytest.mark.parametrize("name", ["safety", "helpfulness"])
def test_every_input_form_gets_the_score_of_transformers_own_forward(
    client: httpx.Client, safety_dir: Path, helpfulness_dir: Path, name: str
) -> None:
    directory = {"safety": safety_dir, "helpfulness": helpfulness_dir}[name]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    templated: Any = tokenizer(tokenizer.apply_chat_template(TURNS, tokenize=False))["input_ids"]
    text: Any = tokenizer(PROMPT)["input_ids"]
    items: list[dict[str, Any]] = [
        {"prompt": PROMPT, "response": RESPONSE},
        {"messages": TURNS},
        {"text": PROMPT},
        {"input_ids": text},
    ]
    expected = [oracle(directory, ids) for ids in (templated, templated, text, text)]
    results = score(client, *items)["results"]
    for result, value, ids in zip(results, expected, (templated, templated, text, text), strict=True):
        entry = result["scores"][name]
        assert entry["score"] == approx(value)
        assert entry["probability"] == pytest.approx(torch.sigmoid(torch.tensor(value)).item(), abs=1e-5)
        assert entry["num_tokens"] == len(ids)
        assert entry["truncated"] is False


def test_the_answer_has_these_fields_and_no_others(client: httpx.Client) -> None:
    answer = score(client, TEA)
    assert set(answer) == {"results", "usage"}
    assert set(answer["usage"]) == {"num_tokens", "num_computed_tokens", "num_cached_tokens"}
    assert list(answer["results"][0]) == ["scores"]
    assert list(answer["results"][0]["scores"]) == ["safety", "helpfulness"]
    for entry in answer["results"][0]["scores"].values():
        assert set(entry) == {"score", "probability", "num_tokens", "truncated"}


def test_items_keep_their_order_among_many_lengths(client: httpx.Client) -> None:
    texts = [{"text": "word " * (n * 37 % 61)} for n in range(61)]
    together = score(client, *texts)["results"]
    alone = [score(client, text)["results"][0] for text in texts[::7]]
    for one, other in zip(together[::7], alone, strict=True):
        for name in ("safety", "helpfulness"):
            assert one["scores"][name]["num_tokens"] == other["scores"][name]["num_tokens"]
            assert one["scores"][name]["score"] == approx(other["scores"][name]["score"])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_has_a_score_and_a_probability_that_agrees(client: httpx.Client, texts: list[str]) -> None:
    answer = score(client, *({"prompt": text, "response": text[::-1]} for text in texts))
    assert len(answer["results"]) == len(texts)
    for result in answer["results"]:
        for entry in result["scores"].values():
            assert entry["probability"] == pytest.approx(1 / (1 + math.exp(-entry["score"])), rel=1e-12)


def test_one_model_may_be_asked_alone_and_twice_is_once(client: httpx.Client) -> None:
    both = score(client, TEA)
    for models in (["helpfulness"], ["helpfulness", "helpfulness"]):
        answer = score(client, TEA, models=models)
        assert list(answer["results"][0]["scores"]) == ["helpfulness"]
        assert answer["results"][0]["scores"]["helpfulness"] == both["results"][0]["scores"]["helpfulness"]
        assert answer["usage"]["num_tokens"] * 2 == both["usage"]["num_tokens"]


def test_usage_counts_a_shared_prefix_once_a_model(client: httpx.Client) -> None:
    ids = list(range(10, 60))
    answer = score(client, {"input_ids": [*ids, 7]}, {"input_ids": [*ids, 8, 9]}, {"input_ids": [*ids, 7]})
    assert answer["usage"] == {
        "num_tokens": 2 * (51 + 52 + 51),
        "num_computed_tokens": 2 * (51 + 2),
        "num_cached_tokens": 0,
    }


def test_token_scores_are_the_scores_of_every_prefix(client: httpx.Client) -> None:
    ids = [1, 40, 41, 42, 43, 44, 45]
    entry = score(client, {"input_ids": ids}, token_scores=True)["results"][0]["scores"]["safety"]
    prefixes = score(client, *({"input_ids": ids[:n]} for n in range(1, len(ids) + 1)))["results"]
    assert len(entry["token_scores"]) == entry["num_tokens"] == len(ids)
    assert entry["token_scores"][-1] == entry["score"]
    for got, prefix in zip(entry["token_scores"], prefixes, strict=True):
        assert got == approx(prefix["scores"]["safety"]["score"])


def test_the_scored_position_is_the_last_that_is_no_padding(client: httpx.Client, safety_dir: Path) -> None:
    padded = score(client, {"input_ids": [1, 40, 41, 0, 0]})["results"][0]["scores"]["safety"]
    assert padded["num_tokens"] == 5
    assert padded["score"] == approx(oracle(safety_dir, [1, 40, 41, 0, 0]))
    assert padded["score"] == approx(oracle(safety_dir, [1, 40, 41]))


LONG = "word " * 600


@pytest.mark.parametrize("truncation", ["prompt", "left", "right"])
def test_a_truncated_input_has_the_limit_s_tokens_and_says_so(client: httpx.Client, truncation: str) -> None:
    items = [{"prompt": LONG, "response": "Yes."}, TEA]
    long, short = score(client, *items, truncation=truncation)["results"]
    for entry in long["scores"].values():
        assert entry["num_tokens"] == 512
        assert entry["truncated"] is True
    for entry in short["scores"].values():
        assert entry["num_tokens"] < 512
        assert entry["truncated"] is False


@pytest.mark.parametrize("item", [{"text": LONG}, {"input_ids": [7] * 600}])
def test_what_has_no_prompt_cannot_lose_it(client: httpx.Client, item: dict[str, Any]) -> None:
    response = client.post("/score", json={"items": [TEA, item], "truncation": "prompt"})
    assert_error(response, 422, "invalid_input", item=1, says="where the response begins")
    short = {key: value[:40] for key, value in item.items()}
    assert score(client, short, truncation="prompt")["results"][0]["scores"]["safety"]["truncated"] is False


def test_a_response_over_the_limit_cannot_keep_all_of_itself(client: httpx.Client) -> None:
    body = {"items": [TEA, {"prompt": "p", "response": LONG}], "truncation": "prompt"}
    assert_error(client.post("/score", json=body), 422, "too_long", item=1, says="response alone")


def test_an_encoder_scores_and_has_no_token_scores(serve: Serve, tmp_path: Path) -> None:
    directory = make_model(tmp_path / "bert", "bert", seed=3, tokenizer=make_tokenizer(template=None, add_eos=True))
    with serve(safety_model="", helpfulness_model=str(directory)) as client:
        ids = AutoTokenizer.from_pretrained(directory)(PROMPT + RESPONSE)["input_ids"]
        entry = score(client, {"prompt": PROMPT, "response": RESPONSE})["results"][0]["scores"]["helpfulness"]
        assert entry["score"] == approx(oracle(directory, ids))
        response = client.post("/score", json={"items": [TEA], "token_scores": True})
        assert_error(response, 422, "invalid_input", says="causal")
        response = client.post("/score", json={"items": [LOCK, {"messages": TURNS}]})
        assert_error(response, 422, "invalid_input", item=1, says="no chat template")


def test_token_ids_need_a_named_model_where_tokenizers_differ(serve: Serve, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=4, tokenizer=make_tokenizer(add_bos=False))
    with serve(helpfulness_model=str(other)) as client:
        ids = {"input_ids": [40, 41, 42]}
        response = client.post("/score", json={"items": [TEA, ids]})
        assert_error(response, 422, "invalid_input", item=1, says="name one model")
        named = score(client, TEA, ids, models=["helpfulness"])["results"][1]["scores"]["helpfulness"]
        assert named["score"] == approx(oracle(other, ids["input_ids"]))
        text = score(client, {"text": PROMPT})["results"][0]["scores"]
        assert text["safety"]["num_tokens"] == text["helpfulness"]["num_tokens"] + 1


def test_a_limit_of_ones_own_is_kept(serve: Serve) -> None:
    with serve(max_length=40, max_items=2) as client:
        assert client.get("/info").json()["max_input_length"] == 40
        response = client.post("/score", json={"items": [{"input_ids": [7] * 40}, {"input_ids": [7] * 41}]})
        assert_error(response, 422, "too_long", item=1, says="41 tokens; the limit is 40")
        response = client.post("/score", json={"items": [TEA] * 3})
        assert_error(response, 422, "invalid_input", says="the limit is 2")


def test_a_bfloat16_trunk_scores_close_to_the_oracle(serve: Serve, safety_dir: Path) -> None:
    ids = [1, 40, 41, 42, 43, 44, 45]
    with serve(dtype="bfloat16", helpfulness_model="") as client:
        assert client.get("/info").json()["model_dtype"] == "bfloat16"
        entry = score(client, {"input_ids": ids})["results"][0]["scores"]["safety"]
    assert entry["score"] == pytest.approx(oracle(safety_dir, ids), rel=0.05, abs=0.1)


def test_a_second_response_to_a_prompt_costs_its_own_tokens_alone(client: httpx.Client) -> None:
    prompt = "A prompt that no other test has, long enough to be kept between two requests. " * 5
    first, second = (
        ask(client, "/score", {"items": [{"prompt": prompt, "response": response}]})["usage"]
        for response in ("One answer.", "Quite another one.")
    )
    assert (first["num_computed_tokens"], first["num_cached_tokens"]) == (first["num_tokens"], 0)
    assert second["num_cached_tokens"] > 0.7 * second["num_tokens"]
    assert second["num_computed_tokens"] == second["num_tokens"] - second["num_cached_tokens"]
