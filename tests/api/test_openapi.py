from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.settings import Settings

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
    assert set(answer) == set(schema["required"])
    assert set(schema["required"]) <= set(schema["properties"])
    result = resolve(document, schema["properties"]["results"]["items"])
    assert set(answer["results"][0]) == set(result["required"])  # the others are there when an option asks for them
    assert set(result["required"]) <= set(result["properties"])


def test_no_schema_mentions_the_validation_error_of_the_framework(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_route_is_in_one_described_group_the_services_own_first(document: dict[str, Any]) -> None:
    groups = [tag["name"] for tag in document["tags"]]
    assert groups == ["rewards", "operation", "compatibility"]
    assert all(tag["description"] for tag in document["tags"])
    by_path = {path: op["tags"] for path, operations in document["paths"].items() for op in operations.values()}
    assert all(len(tags) == 1 and tags[0] in groups for tags in by_path.values())
    assert [path for path, tags in by_path.items() if tags == ["rewards"]] == NATIVE
    assert by_path["/health"] == by_path["/metrics"] == by_path["/admin/reload"] == ["operation"]


def misfits(document: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    """Where the value lacks a field that the schema requires, or has one that it does not know."""
    schema = resolve(document, schema)
    if isinstance(value, list):
        return [found for each in value for found in misfits(document, schema.get("items", {}), each)]
    if not isinstance(value, dict) or "properties" not in schema:
        return []
    wrong = [*set(schema.get("required", ())) - set(value), *set(value) - set(schema["properties"])]
    return wrong + [
        found for key in set(value) - set(wrong) for found in misfits(document, schema["properties"][key], value[key])
    ]


@pytest.mark.parametrize(
    ("path", "method"),
    [*((path, "post") for path in (*NATIVE, "/admin/reload")), ("/health", "get"), ("/ready", "get")],
)
def test_a_native_route_shows_an_answer_of_its_own_form(document: dict[str, Any], path: str, method: str) -> None:
    schema = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    (shown,) = resolve(document, schema)["examples"]
    assert misfits(document, schema, shown) == []
    assert misfits(document, schema, {**shown, "unknown": 1}) == ["unknown"]


@pytest.mark.parametrize("keys", [(), ("secret",)])
def test_the_key_is_documented_as_bearer_and_basic_and_as_optional_without_keys(keys: tuple[str, ...]) -> None:
    document = create_app(Settings(_env_file=None, api_keys=keys)).api.openapi()
    assert {each["scheme"] for each in document["components"]["securitySchemes"].values()} == {"bearer", "basic"}
    either: list[dict[str, list[str]]] = [{"bearer": []}, {"basic": []}]
    assert document["security"] == (either if keys else [{}, *either])
    paths = document["paths"]
    assert paths["/health"]["get"]["security"] == paths["/ready"]["get"]["security"] == []
    assert "security" not in paths["/score"]["post"]
