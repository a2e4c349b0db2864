"""What users of other reward servers report (their issue numbers are the projects' own), each shown not to happen here.

Over HTTP, as their trainers would see it; the timings under storms are in `make storm`.
"""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from app.settings import Settings
from reward_client import AsyncRewardClient, DeadlineError, RewardClient
from tests.api.compat.support import answer, llama2, native, post
from tests.conftest import Serve
from tests.models import make_model, make_tokenizer

TEXTS = ["tea", "How long should green tea steep? Two minutes.", "How do I pick a lock? Ask a locksmith."]


def oracle(directory: Path, token_ids: list[int]) -> float:
    """transformers' own forward of the one unpadded sequence."""
    net = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        return float(net(torch.tensor([token_ids])).logits[0, 0])


def rewards(client: httpx.Client, items: list[dict[str, Any]], **options: Any) -> httpx.Response:
    return client.post("/ppo-reward", json={"items": items, **options})


def scored(*scores: float, **more: Any) -> list[dict[str, Any]]:
    return [{"safety_score": score, "helpfulness_score": score, **more} for score in scores]


# 1. transformers #35352, #35909; TRL #422
@pytest.mark.parametrize(
    ("tokens", "config"),
    [({"pad_token": "</s>"}, {"pad_token_id": 2}), ({"pad_token": None}, {"pad_token_id": None})],
    ids=["pad is eos", "no pad token"],
)
def test_a_checkpoint_whose_pad_is_eos_or_missing_scores_batches_as_it_was_trained(
    serve: Serve, tmp_path: Path, tokens: dict[str, Any], config: dict[str, Any]
) -> None:
    directory = make_model(tmp_path, tokenizer=make_tokenizer(**tokens), seed=3, **config)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    queries = [f"<s>{text}{end}" for text in TEXTS for end in ("", "</s>")]
    with serve(safety_model="", helpfulness_model=str(directory)) as client:
        got = answer(client, "/get_reward", {"query": queries})["rewards"]
    for query, reward in zip(queries, got, strict=True):
        expected = oracle(directory, tokenizer(query, add_special_tokens=False)["input_ids"])
        assert reward == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))


# 2. OpenRLHF #217, RewardBench #137
def test_a_score_depends_on_no_neighbour(client: httpx.Client) -> None:
    alone = [answer(client, "/classify", {"input": text})["data"][0]["probs"][0] for text in TEXTS]
    crowd = [*TEXTS, "tea " * 300, *TEXTS[::-1]]
    together = [entry["probs"][0] for entry in answer(client, "/classify", {"input": crowd})["data"]]
    assert together[:3] == alone
    assert together[4:] == alone[::-1]


# 3. RewardBench #164, #94; TRL #3853
def test_every_input_form_has_exactly_one_bos(client: httpx.Client, safety_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(safety_dir)
    text = TEXTS[1]
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    expected = llama2(native(client, {"input_ids": ids}))
    for form in (text, f"<s>{text}"):
        assert llama2(native(client, {"text": form})) == expected
        assert answer(client, "/classify", {"input": form})["data"][0]["probs"] == [expected]
        assert answer(client, "/classify", {"text": form})["embedding"] == [expected]
        assert answer(client, "/slime", {"prompt": form, "response": ""}) == expected
        assert answer(client, "/predict", {"inputs": form, "raw_scores": True})[0]["score"] == expected
    assert answer(client, "/get_reward", {"query": [f"<s>{text}"]})["rewards"] == [expected]


@pytest.mark.parametrize("add_eos", [True, False])
def test_eos_is_there_where_the_tokenizer_adds_it_and_nowhere_else(serve: Serve, tmp_path: Path, add_eos: bool) -> None:
    directory = make_model(tmp_path, tokenizer=make_tokenizer(add_eos=add_eos), seed=3)
    ids = AutoTokenizer.from_pretrained(directory)(TEXTS[1])["input_ids"]
    assert (ids[-1] == 2) is add_eos
    with serve(safety_model="", helpfulness_model=str(directory)) as client:
        assert native(client, {"text": TEXTS[1]}) == native(client, {"input_ids": ids})


# 4. vLLM #18386, SGLang PR #19709
def test_saturated_scores_stay_apart_and_finite(serve: Serve, tmp_path: Path) -> None:
    directory = make_model(tmp_path, seed=2, edit=lambda net: net.score.weight.data.mul_(100))
    with serve(safety_model=str(directory), helpfulness_model=str(directory)) as client:
        raw = [entry["probs"][0] for entry in answer(client, "/classify", {"input": TEXTS})["data"]]
        assert max(map(abs, raw)) > 37  # from here on a probability is 1 or 0 in fp64
        assert len(set(raw)) == 3
        results = rewards(client, [{"text": text} for text in TEXTS], token_rewards=True).json()["results"]
        assert [result["selected_score"] for result in results] == raw
        assert np.isfinite([result["reward"] for result in results]).all()


# 5. slime PR #1918, TRL PR #6121
def test_one_score_cannot_be_whitened_and_the_error_says_what_to_do(client: httpx.Client) -> None:
    response = rewards(client, scored(1.0))
    assert response.status_code == 422
    for way_out in ("more items", "stats", "mode none"):
        assert way_out in response.json()["error"]["message"]


def test_equal_scores_whiten_to_zero(client: httpx.Client) -> None:
    assert [result["whitened"] for result in rewards(client, scored(2.5, 2.5, 2.5)).json()["results"]] == [0, 0, 0]


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "1e999"])
def test_one_nan_is_refused_and_spoils_no_batch(client: httpx.Client, bad: str) -> None:
    body = json.dumps({"items": scored(1.0, 2.0)}).replace("2.0", bad).encode()
    response = post(client, "/ppo-reward", body)
    assert response.status_code == 422
    assert "results" not in response.json()


def test_uneven_groups_are_whitened_each_by_itself(client: httpx.Client) -> None:
    groups = {"a": [1.0, 2.0], "b": [5.0, 7.0, 9.0, 11.0], "c": [0.0, 1.0, 5.0]}
    items = [item for name, scores in groups.items() for item in scored(*scores, group_id=name)]
    got = [result["whitened"] for result in rewards(client, items, whiten={"mode": "group"}).json()["results"]]
    expected = np.concatenate([(np.array(s) - np.mean(s)) / np.std(s, ddof=1) for s in groups.values()])
    assert got == pytest.approx(expected.tolist(), rel=1e-6)


def test_no_value_leaks_through_a_mask(client: httpx.Client) -> None:
    def kl(padding: list[Any]) -> tuple[float, list[float]]:
        item = {
            **scored(1.0)[0],
            "policy_logprobs": [-1.0, -2.0, *padding],
            "reference_logprobs": [-1.5, -1.0, *padding[::-1]],
            "mask": [1, 1, 0, 0],
        }
        response = rewards(client, [item], whiten={"mode": "none"}, token_rewards=True)
        result = response.json()["results"][0]
        return result["kl"], result["token_rewards"]

    for padding in ([1.0, 1.0], [None, -700.0], [1e300, -1e300]):
        value, per_token = kl(padding)
        assert value == pytest.approx(-0.5)
        assert per_token[2:] == [0, 0]


# 6. TEI #723, Infinity #544, SGLang #853, Infinity #483
def test_an_item_over_the_batch_budget_is_answered(serve: Serve, client: httpx.Client) -> None:
    with serve(max_batch_tokens=8) as small:
        assert native(small, {"text": TEXTS[1]}) == native(client, {"text": TEXTS[1]})


def test_out_of_memory_splits_the_batch_and_leaves_no_hang(serve: Serve, client: httpx.Client) -> None:
    def too_many(_: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        if args[0].numel() > 64:
            raise torch.OutOfMemoryError("out of memory")

    with serve() as tight:
        engine = tight.app.state.service.engine  # type: ignore[attr-defined]
        for model in engine.models.values():
            model.net.get_input_embeddings().register_forward_pre_hook(too_many)
        many = {"input": TEXTS * 4 + ["lock " * i for i in range(1, 9)]}
        assert answer(tight, "/classify", many)["data"] == answer(client, "/classify", many)["data"]
        response = post(tight, "/classify", json.dumps({"input": "tea " * 200}).encode())
        assert response.status_code == 500
        assert tight.get("/health").status_code == 200


def test_health_is_not_200_after_a_model_thread_has_died(serve: Serve) -> None:
    with serve() as client:
        for thread in client.app.state.service.engine.devices.values():  # type: ignore[attr-defined]
            thread.stop()
            thread.join()
        assert client.get("/health").status_code == 503
        response = post(client, "/classify", b'{"input": "tea"}')
        assert response.status_code == 500
        assert "restarted" in response.json()["error"]["message"]


# 7. slime PR #1582
def test_hundreds_of_requests_at_once_are_all_answered_and_health_with_them(client: httpx.Client) -> None:
    async def storm() -> tuple[list[float], int]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=client.base_url, timeout=60, limits=limits) as http:
            bodies = [{"prompt": "Tea?", "response": f" answer {i}"} for i in range(400)]
            asking = [asyncio.create_task(http.post("/slime", json=body)) for body in bodies]
            health = await http.get("/health")
            replies = await asyncio.gather(*asking)
            return [reply.raise_for_status().json() for reply in replies], health.status_code

    scores, health = asyncio.run(storm())
    assert health == 200
    assert scores[7] == llama2(native(client, {"text": "Tea? answer 7"}))
    assert len(set(scores)) > 100


# 8. verl PR #6673, OpenRLHF #1123
@pytest.fixture(scope="module")
def hurried(serve: Serve) -> Iterator[httpx.Client]:
    """A server with a deadline that nothing can meet."""
    with serve(deadline_seconds=1e-6) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/score", {"items": [{"text": "a"}]}, 504),
        ("/compare", {"pairs": [{"prompt": "a", "chosen": "b", "rejected": "c"}]}, 504),
        ("/ppo-reward", {"items": [{"text": "a"}], "whiten": {"mode": "none"}}, 504),
        ("/get_reward", {"query": ["a"]}, 504),
        ("/classify", {"input": "a"}, 504),
        ("/classify", {"text": "a"}, 504),
        ("/pooling", {"input": "a"}, 504),
        ("/v1/embeddings", {"input": "a"}, 504),
        ("/predict", {"inputs": "a"}, 429),
        ("/slime", {"prompt": "a", "response": "b"}, 504),
    ],
)
def test_every_route_has_a_deadline(hurried: httpx.Client, path: str, body: dict[str, Any], status: int) -> None:
    assert hurried.post(path, json=body).status_code == status


@pytest.mark.parametrize(
    "beginning", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"], ids=["silent", "stuck"]
)
def test_a_server_that_never_answers_holds_no_trainer(beginning: bytes) -> None:
    """It takes connections and says nothing, or stops in the middle of its answer."""
    kept: list[socket.socket] = []

    def begin(listener: socket.socket) -> None:
        with suppress(OSError):  # it is shut down
            while True:
                kept.append(listener.accept()[0])
                kept[-1].sendall(beginning)

    async def ask(url: str) -> None:
        async with AsyncRewardClient(url, deadline_seconds=0.2) as client:
            await client.score([{"text": "a"}])

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        thread = threading.Thread(target=begin, args=[silent])
        thread.start()
        with RewardClient(url, deadline_seconds=0.2) as client, pytest.raises(DeadlineError):
            client.score([{"text": "a"}])
        with pytest.raises(DeadlineError):
            asyncio.run(ask(url))
        silent.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in kept:
        connection.close()


# 9. OpenRLHF #1317
def test_the_service_listens_on_loopback_unless_told_otherwise() -> None:
    assert Settings(_env_file=None).host == "127.0.0.1"


def test_a_key_guards_every_compatibility_route_and_a_url_can_hold_it(serve: Serve) -> None:
    with serve(api_keys="secret") as client:
        for path in ("/get_reward", "/classify", "/pooling", "/v1/embeddings", "/predict", "/slime"):
            assert post(client, path, b"{}").status_code == 401
        with_key = client.base_url.copy_with(username="trainer", password="secret", path="/slime")
        assert client.post(with_key, json={"prompt": "a", "response": "b"}).status_code == 200


def test_no_text_is_logged(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "xyzzy"
    for body in ({"input": secret}, {"input": [1, secret]}, {"messages": [{"role": secret, "content": secret}]}):
        client.post("/classify", json=body)
    client.post("/get_reward", json={"query": [secret, ""]})
    client.post("/score", json={"items": [{"prompt": secret}]})
    assert secret not in caplog.text
