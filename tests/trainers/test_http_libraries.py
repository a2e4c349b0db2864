"""The documented calls of trainers that do not install without CUDA, sent with the libraries that they send them with."""

import asyncio
from typing import Any

import aiohttp
import httpx
import pytest
import requests

from tests.api.compat.support import llama2, native
from tests.conftest import Serve

TEXT = "How long should green tea steep? Two minutes."


def by_aiohttp(url: str, payload: dict[str, Any], seconds: float) -> Any:
    async def post() -> Any:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session,
            session.post(url, json=payload) as response,
        ):
            response.raise_for_status()
            return await response.json()

    return asyncio.run(post())


def test_openrlhf_posts_one_query_with_aiohttp(client: httpx.Client, url: str) -> None:
    query = f"<s>{TEXT}</s>"
    reply = by_aiohttp(f"{url}/get_reward", {"query": [query], "prompts": [TEXT], "labels": ["safety"]}, 180)
    assert reply["rewards"] == [native(client, {"text": query})["safety"]]
    assert 0 < reply["scores"][0] < 1
    rest = by_aiohttp(f"{url}/get_reward", {"query": [], "prompts": [], "labels": []}, 180)
    assert rest["rewards"] == rest["scores"] == []


def test_slime_posts_a_sample_with_aiohttp_and_reads_a_number(client: httpx.Client, url: str) -> None:
    for prompt, item in (
        (TEXT, {"text": TEXT + " Yes."}),
        ([{"role": "user", "content": TEXT}], {"prompt": TEXT, "response": " Yes."}),
    ):
        reply = by_aiohttp(f"{url}/slime", {"prompt": prompt, "response": " Yes.", "label": None}, 120)
        assert reply == llama2(native(client, item))


def test_verl_reads_the_last_number_of_the_last_entry_with_aiohttp(client: httpx.Client, url: str) -> None:
    payload = {"model": "/checkpoints/rm", "input": TEXT, "activation": False}
    expected = llama2(native(client, {"text": TEXT}))
    assert by_aiohttp(f"{url}/classify", payload, 60)["data"][-1]["probs"][-1] == expected
    assert by_aiohttp(f"{url}/v1/embeddings", payload, 60)["data"][-1]["embedding"][-1] == expected


@pytest.mark.parametrize(
    ("path", "payload"),
    [("/classify", {"text": TEXT}), ("/predict", {"inputs": TEXT, "raw_scores": True}), ("/pooling", {"input": TEXT})],
)
def test_requests_gets_the_same_score(client: httpx.Client, url: str, path: str, payload: dict[str, Any]) -> None:
    response = requests.post(url + path, json=payload, timeout=60)
    assert response.status_code == 200
    assert str(llama2(native(client, {"text": TEXT}))) in response.text


def test_a_url_with_a_password_passes_the_key_from_either_library(serve: Serve) -> None:
    with serve(api_keys="secret") as server:
        url = str(server.base_url).replace("http://", "http://trainer:secret@") + "/slime"
        payload = {"prompt": TEXT, "response": " Yes."}
        assert by_aiohttp(url, payload, 60) == requests.post(url, json=payload, timeout=60).json()
        bare = requests.post(f"{server.base_url}/slime", json=payload, timeout=60)
        assert bare.status_code == 401
