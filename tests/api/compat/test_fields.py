"""Each field of the three servers' requests is honoured, refused, or on the list of those that may be ignored."""

from typing import Any

import httpx
import pytest

from app.api.routes import JSON_ROUTES
from tests.api.compat.fields import OWN, SERVERS, Fields

ROUTES = [(server, path, fields) for server, routes in SERVERS.items() for path, fields in routes.items()]
REFUSED = [(path, fields.base, name, value) for _, path, fields in ROUTES for name, value in fields.refused.items()]

SAME_BODY = {"/v1/classify": "/classify", "/rerank": "/v1/rerank"}
"""Routes that also take what another takes."""


def declared(path: str) -> set[str]:
    return set(JSON_ROUTES["POST", path].body_type.model_fields)


@pytest.mark.parametrize(("server", "path", "fields"), ROUTES)
def test_what_is_honoured_or_refused_is_read_and_what_is_ignored_is_not(server: str, path: str, fields: Fields) -> None:
    assert fields.honoured <= declared(path), server
    assert set(fields.refused) <= declared(path), server
    assert not set(fields.ignored) & declared(path), server
    assert not fields.honoured & set(fields.refused)
    assert all(reason.strip() for reason in fields.ignored.values())


@pytest.mark.parametrize("path", sorted({path for _, path, _ in ROUTES}))
def test_nothing_else_is_read(path: str) -> None:
    known = set(OWN)
    for routes in SERVERS.values():
        for each in {path, SAME_BODY.get(path, path)} & set(routes):
            known |= routes[each].honoured | set(routes[each].refused)
    assert declared(path) <= known


@pytest.mark.parametrize(("path", "base", "name", "value"), REFUSED, ids=[f"{p} {n}" for p, _, n, _ in REFUSED])
def test_what_is_refused_is_a_400_that_names_it(
    client: httpx.Client, path: str, base: dict[str, Any], name: str, value: Any
) -> None:
    assert client.post(path, json=base).status_code == 200
    assert client.post(path, json={**base, name: None}).status_code == 200
    response = client.post(path, json={**base, name: value})
    assert response.status_code == 400, response.text
    message = response.json()["error"]["message"]
    assert name in message or name.replace("_", " ") in message.lower()


@pytest.mark.parametrize(
    "body", [{"query": "a", "items": ["b"]}, {"query": "a", "items": ["b"], "label_token_ids": [1]}]
)
def test_sglangs_form_of_a_score_is_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("/v1/score", json=body).status_code == 400


def test_teis_form_of_tokenize_is_refused(client: httpx.Client) -> None:
    assert client.post("/tokenize", json={"inputs": "a"}).status_code == 400
