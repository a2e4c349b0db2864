from tests.api_reference import PAGE, Reference, reference, with_reference


def test_the_page_has_the_routes_and_fields_that_the_code_has() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert reference() in page, "run `make readme`"
    assert with_reference(page) == page


def test_a_route_is_shown_with_the_fields_of_its_body_and_its_answer() -> None:
    item = {
        "properties": {
            "name": {"type": "string"},
            "many": {"type": "array", "items": {"$ref": "#/components/schemas/Item"}},
        }
    }
    body = {
        "required": ["items"],
        "properties": {
            "items": {"type": "array", "items": {"$ref": "#/components/schemas/Item"}},
            "top": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": 3, "description": "How\n  many."},
        },
    }
    operation = {
        "summary": "Do it",
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}},
        "responses": {"200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Item"}}}}},
    }
    text = Reference({"components": {"schemas": {"Item": item, "Body": body}}}).route("POST", "/do", operation)
    assert text.splitlines() == [
        "#### POST /do",
        "",
        "Do it.",
        "",
        "| body | type | |",
        "| --- | --- | --- |",
        "| `items` | list of Item | Required. |",
        "| `items[].name` | string |  |",
        "| `items[].many` | list of Item |  |",
        "| `top` | integer or null | How many. Default: `3`. |",
        "",
        "| answer | type | |",
        "| --- | --- | --- |",
        "| `name` | string |  |",
        "| `many` | list of Item |  |",
    ]
