from collections.abc import Iterator
from typing import Any

import httpx
import pytest

NATIVE = ["/score", "/compare", "/ppo-reward"]


def resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        resolved: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return resolved
    return schema


def examples(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every example of a request's body, wherever OpenAPI lets one stand."""
    for path, operations in document["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        found = [*content.get("examples", {}).values()]
        yield from ((path, example["value"]) for example in found)
        if "example" in content:
            yield path, content["example"]
        yield from ((path, body) for body in resolve(document, content.get("schema", {})).get("examples", []))


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    answer: dict[str, Any] = client.get("/openapi.json").json()
    return answer


def test_every_example_is_answered_as_it_stands(client: httpx.Client, document: dict[str, Any]) -> None:
    found = list(examples(document))
    assert set(NATIVE) <= {path for path, _ in found}
    for path, body in found:
        response = client.post(path, json=body)
        assert response.status_code == 200, (path, response.text)


@pytest.mark.parametrize("path", NATIVE)
def test_a_native_route_documents_its_errors_and_their_one_body(document: dict[str, Any], path: str) -> None:
    responses = document["paths"][path]["post"]["responses"]
    assert {"200", "400", "401", "413", "422", "500", "503", "504"} <= set(responses)
    for status, response in responses.items():
        if status != "200":
            schema = response["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}, status


@pytest.mark.parametrize("path", [*NATIVE, "/health", "/ready", "/info"])
def test_every_route_has_a_summary(document: dict[str, Any], path: str) -> None:
    for operation in document["paths"][path].values():
        assert operation["summary"]


@pytest.mark.parametrize("path", NATIVE)
def test_the_documented_fields_are_those_of_the_answer(
    client: httpx.Client, document: dict[str, Any], path: str
) -> None:
    operation = document["paths"][path]["post"]
    schema = resolve(document, operation["responses"]["200"]["content"]["application/json"]["schema"])
    body = next(body for own, body in examples(document) if own == path)
    answer = client.post(path, json=body).json()
    assert set(answer) == set(schema["properties"])
    result = resolve(document, schema["properties"]["results"]["items"])
    assert set(answer["results"][0]) == set(result["properties"])


def test_no_schema_mentions_the_validation_error_of_the_framework(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]
