"""What the API tests share: a request that must succeed, and an error that must have the one body."""

from typing import Any

import httpx

TEA = {"prompt": "How long should green tea steep?", "response": "Two to three minutes."}
LOCK = {"prompt": "How do I pick a lock?", "response": "I can't help with that."}


def ask(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def assert_error(response: httpx.Response, status: int, code: str, *, item: int | None = None, says: str = "") -> None:
    """The one error body, with this code, the item's place if there is one, and these words in the message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"], body
    detail = body["error"]
    assert detail["code"] == code, detail
    assert detail.get("item") == item, detail
    assert set(detail) == {"code", "message"} | ({"item"} if item is not None else set()), detail
    assert says in detail["message"], detail
    assert detail["message"].strip()
    assert "Traceback" not in detail["message"]
    assert "\n" not in detail["message"]
    assert len(detail["message"]) < 600, detail
