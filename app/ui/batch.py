"""The PPO tab's batch in three forms: the API's items, the rows of an editable table, and JSONL."""

import json
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from app.checkpoints.model_settings import ROLES
from app.errors import InvalidInputError

FIELDS = ["prompt", "response", "is_safety", "group_id", "policy_logprobs", "reference_logprobs", "other"]
HEADERS = ["prompt", "response", "safety", "group", "policy logprobs", "reference logprobs", "other fields"]
TYPES = ["str", "str", "bool", "str", "str", "str", "str"]
LISTS = ("policy_logprobs", "reference_logprobs")
EXAMPLES = {
    "Mixed prompts": "mixed.jsonl",
    "Best of four, twice": "groups.jsonl",
    "A policy that drifts": "drift.jsonl",
}
FOLDER = Path(__file__).parent / "examples"

Item = dict[str, Any]
Row = list[Any]


def example(name: str) -> list[Item]:
    return items_of_jsonl((FOLDER / EXAMPLES[name]).read_text(encoding="utf-8"))


def items_of_jsonl(text: str) -> list[Item]:
    """Parses one JSON object per line; raises InvalidInputError that names the invalid line."""
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = from_json(line)
        except ValueError as error:
            raise InvalidInputError(f"line {number} is not JSON: {error}") from None
        if not isinstance(item, dict):
            raise InvalidInputError(f"line {number} is {line.strip()[:40]}; give one JSON object a line")
        items.append(item)
    if not items:
        raise InvalidInputError("there is no line; give one JSON object a line, as in POST /ppo-reward")
    return items


def rows_of(items: list[Item]) -> list[Row]:
    """One row per item. Fields without a column of their own go into the last column, as JSON."""
    rows = []
    for item in items:
        other = {name: value for name, value in item.items() if name not in FIELDS}
        rows.append(
            [
                item.get("prompt", ""),
                item.get("response", ""),
                bool(item.get("is_safety", False)),
                "" if item.get("group_id") is None else str(item["group_id"]),
                *(", ".join(map(json.dumps, item.get(name) or [])) for name in LISTS),
                json.dumps(other, ensure_ascii=False) if other else "",
            ]
        )
    return rows


def items_of_rows(rows: list[Row]) -> list[Item]:
    """The table's rows as items, without blank rows; raises InvalidInputError that names the invalid row and column."""
    items = []
    if any(len(row) != len(FIELDS) for row in rows):
        raise InvalidInputError(
            f"the table needs its {len(FIELDS)} columns, {', '.join(HEADERS)}; take an example anew"
        )
    for number, row in enumerate(rows, 1):
        cells = {name: "" if cell is None else cell for name, cell in zip(FIELDS, row, strict=True)}
        blank = cells | {"is_safety": "" if str(cells["is_safety"]).lower() == "false" else cells["is_safety"]}
        if any(str(cell).strip() for cell in blank.values()):
            items.append(item_of(number, cells))
    if not items:
        raise InvalidInputError("the table is empty; take an example, or load a JSONL file")
    return items


def item_of(number: int, cells: dict[str, Any]) -> Item:
    item: Item = {}
    if cells["other"]:
        item |= json_cell(number, "other fields", str(cells["other"]), dict)
    for name in ("prompt", "response"):
        if cells[name] != "" or (name == "response" and cells["prompt"] != ""):
            item[name] = str(cells[name])
    if str(cells["is_safety"]).lower() == "true":
        item["is_safety"] = True
    if cells["group_id"] != "":
        item["group_id"] = str(cells["group_id"])
    for name in LISTS:
        text = str(cells[name]).strip()
        if text:
            item[name] = json_cell(number, name, text if text.startswith("[") else f"[{text}]", list)
    return item


def json_cell(number: int, column: str, text: str, kind: type) -> Any:
    try:
        value = from_json(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        wanted = "numbers with commas between them" if kind is list else 'a JSON object, such as {"mask": [1, 0]}'
        raise InvalidInputError(f"row {number}, {column}: {text[:60]!r} is not readable; give {wanted}")
    return value


def scored(items: list[Item], results: list[dict[str, Any]]) -> list[Item]:
    """The items with their scores in place of their inputs, so no model has to run."""
    inputs = {"prompt", "response", "messages", "text", "input_ids"}
    return [
        {name: value for name, value in item.items() if name not in inputs}
        | {f"{model}_score": result[f"{model}_score"] for model in ROLES if result[f"{model}_score"] is not None}
        | ({"scores": result["scores"]} if result.get("scores") else {})
        for item, result in zip(items, results, strict=True)
    ]


def label(item: Item) -> tuple[str, str]:
    """A label for an item: its prompt and response, or the fields that it has instead."""
    if "prompt" in item:
        return str(item["prompt"]), str(item.get("response", ""))
    if isinstance(item.get("messages"), list) and len(item["messages"]) > 1:
        *_, asked, said = item["messages"]
        return str(asked.get("content", "")), str(said.get("content", ""))
    if "text" in item:
        return "text", str(item["text"])
    if "input_ids" in item:
        return "token ids", f"{len(item['input_ids'])} of them"
    return "scores", "as they were sent"
