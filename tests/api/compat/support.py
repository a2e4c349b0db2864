"""Posts exact bytes, and says what the native routes say of the same input."""

import json
import math
from typing import Any

import httpx

THRESHOLD_SCORE = math.log(0.15 / 0.85)
LONG = "green tea, " * 400
"""More tokens than the tiny models take (512)."""


def post(client: httpx.Client, path: str, body: bytes) -> httpx.Response:
    return client.post(path, content=body, headers={"content-type": "application/json"})


def answer(client: httpx.Client, path: str, body: bytes | dict[str, Any]) -> Any:
    response = post(client, path, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert response.status_code == 200, response.text
    return response.json()


def native(client: httpx.Client, item: dict[str, Any], **options: Any) -> dict[str, float]:
    """Each model's score in /score."""
    response = client.post("/score", json={"items": [item], **options})
    assert response.status_code == 200, response.text
    return {name: entry["score"] for name, entry in response.json()["results"][0]["scores"].items()}


def llama2(scores: dict[str, float], *, is_safety: bool = False) -> float:
    """The paper's selection."""
    return scores["safety" if is_safety or scores["safety"] < THRESHOLD_SCORE else "helpfulness"]


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))
