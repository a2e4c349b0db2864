"""The reference in docs/api.md, from the OpenAPI document. `make readme` writes it; a test compares the two."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.main import create_app
from app.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
REFERENCE = re.compile(r"(<!-- reference.*?-->\n).*?(<!-- /reference -->)", re.DOTALL)
Schema = dict[str, Any]
COMPATIBILITY = "compatibility"


class Reference:
    """Markdown of an OpenAPI document: each route with the fields of its body and of its answer."""

    def __init__(self, document: Schema) -> None:
        self.document = document
        self.schemas: Schema = document["components"]["schemas"]
        self._shown: set[str] = set()
        """Objects whose fields the page has already."""

    def text(self) -> str:
        parts = []
        for tag in self.document["tags"]:
            parts.append(f"### {tag['name'].capitalize()}\n\n{tag['description']}\n")
            routes = list(self.routes(tag["name"]))
            if tag["name"] == COMPATIBILITY:
                parts.append(self.overview(routes))
            else:
                parts += [self.route(method, path, operation) for method, path, operation in routes]
        return "\n".join(parts)

    def routes(self, tag: str) -> Iterator[tuple[str, str, Schema]]:
        for path, operations in self.document["paths"].items():
            for method, operation in operations.items():
                if tag in operation["tags"]:
                    yield method.upper(), path, operation

    def overview(self, routes: list[tuple[str, str, Schema]]) -> str:
        """A row per route, with the names of its fields: what they mean is another server's to say."""
        rows = ["| route | | body | answer |", "| --- | --- | --- | --- |"]
        for method, path, operation in routes:
            body, answer = (", ".join(self.names(schema)) for schema in bodies_of(operation))
            rows.append(f"| `{method} {path}` | {operation['summary']} | {body} | {answer} |")
        return "\n".join(rows) + "\n"

    def names(self, schema: Schema | None) -> list[str]:
        parts = [] if schema is None else self.alternatives(schema)
        return list(dict.fromkeys(f"`{name}`" for part in parts for name in part.get("properties", {})))

    def route(self, method: str, path: str, operation: Schema) -> str:
        parts = [f"#### {method} {path}\n", f"{operation['summary']}.\n"]
        if description := operation.get("description"):
            parts.append(
                textwrap.fill(one_line(description), 150, break_long_words=False, break_on_hyphens=False) + "\n"
            )
        body, answer = bodies_of(operation)
        for title, schema in (("body", body), ("answer", answer)):
            rows = [] if schema is None else list(self.fields(schema, "", title == "body"))
            if rows:
                parts.append("\n".join([f"| {title} | type | |", "| --- | --- | --- |", *rows]) + "\n")
        return "\n".join(parts)

    def fields(self, schema: Schema, prefix: str, is_body: bool) -> Iterator[str]:
        """A row per field; those of an object in a field follow it where the page first names it."""
        name = reference_name(schema)
        if prefix and name in self._shown:
            return
        self._shown.add(name)
        for part in self.alternatives(schema):
            required = set(part.get("required", ()))
            for field, own in part.get("properties", {}).items():
                path = f"{prefix}{field}"
                yield f"| `{path}` | {self.type_of(own)} | {self.says(own, is_body and field in required)} |"
                for kind, suffix in self.objects(own):
                    yield from self.fields(kind, f"{path}{suffix}.", is_body)

    def alternatives(self, schema: Schema) -> list[Schema]:
        """The schemas that a value may have, references followed; null left out."""
        if "$ref" in schema:
            return self.alternatives(self.schemas[reference_name(schema)])
        kinds = schema.get("anyOf") or schema.get("oneOf") or [schema]
        if kinds == [schema]:
            return [schema]
        return [each for kind in kinds if kind.get("type") != "null" for each in self.alternatives(kind)]

    def objects(self, schema: Schema) -> Iterator[tuple[Schema, str]]:
        """The objects with named fields in a field: its own, those of a list's entries, those of a map's values."""
        for kind in schema.get("anyOf") or schema.get("oneOf") or [schema]:
            if "$ref" in kind:
                yield kind, ""
            elif isinstance(kind.get("items"), dict):
                yield from ((inner, f"[]{suffix}") for inner, suffix in self.objects(kind["items"]))
            elif isinstance(kind.get("additionalProperties"), dict):
                yield from ((inner, f".*{suffix}") for inner, suffix in self.objects(kind["additionalProperties"]))

    def type_of(self, schema: Schema) -> str:
        if "$ref" in schema:
            name = reference_name(schema)
            return name if "properties" in self.schemas[name] else self.type_of(self.schemas[name])
        kinds = schema.get("anyOf") or schema.get("oneOf")
        if kinds:
            return " or ".join(dict.fromkeys(self.type_of(kind) for kind in kinds))
        if "enum" in schema or "const" in schema:
            return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
        kind = str(schema.get("type", "any"))
        if kind == "array":
            return f"list of {self.type_of(schema.get('items', {}))}"
        if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
            return f"map of {self.type_of(schema['additionalProperties'])}"
        return kind

    def says(self, schema: Schema, is_required: bool) -> str:
        default = schema.get("default")
        parts = [
            "Required." if is_required else "",
            one_line(schema.get("description", "")),
            f"Default: `{str(default).lower() if isinstance(default, bool) else default}`."
            if default is not None
            else "",
        ]
        return " ".join(filter(None, parts)).replace("|", "\\|")


def bodies_of(operation: Schema) -> tuple[Schema | None, Schema | None]:
    """The schemas of a route's body and of its answer, where it has them."""
    body = operation.get("requestBody", {})
    answer = operation["responses"].get("200", {})
    body_schema, answer_schema = (
        each.get("content", {}).get("application/json", {}).get("schema") for each in (body, answer)
    )
    return body_schema, answer_schema


def reference_name(schema: Schema) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def one_line(text: str) -> str:
    return " ".join(text.split())


def reference() -> str:
    return Reference(create_app(Settings(_env_file=None)).api.openapi()).text()


def with_reference(page: str) -> str:
    return REFERENCE.sub(lambda match: f"{match[1]}{reference()}{match[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(with_reference(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
