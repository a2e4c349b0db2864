"""docs/troubleshooting.md: every message that the page quotes is one that the code writes."""

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "\0"
"""In a text of the code: what an f-string or a log call fills in."""


def texts(node: ast.AST) -> Iterator[str]:
    """Every string under the node; an f-string as one, with a gap for each value."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.sub(r"%[-.\w]*[sdg]", GAP, node.value)
    for child in ast.iter_child_nodes(node):
        yield from texts(child)


def code_texts() -> set[str]:
    files = chain((ROOT / "app").rglob("*.py"), (ROOT / "reward_client").rglob("*.py"))
    return {text for file in files for text in texts(ast.parse(file.read_text(encoding="utf-8")))}


def messages() -> list[str]:
    """The first quotation of each row's first column."""
    rows = re.findall(
        r"^\| (?!message|status)[^|`]*`([^|]+?)`[^|`]* \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return [row for row in rows if row != "---"]


def is_written(message: str, written: set[str]) -> bool:
    """Whether one text of the code has the parts of the message between its gaps, in this order."""
    parts = [part.strip(" ;:,()") for part in message.split("...")]
    pattern = re.compile(".*".join(re.escape(part) for part in parts if part), re.DOTALL)
    return any(pattern.search(text) for text in written)


@pytest.fixture(scope="module")
def written() -> set[str]:
    return code_texts()


@pytest.mark.parametrize("message", messages())
def test_a_quoted_message_is_in_the_code(message: str, written: set[str]) -> None:
    assert is_written(message, written)


def test_the_page_is_read_and_an_invented_message_is_found(written: set[str]) -> None:
    assert len(messages()) > 40
    assert not is_written("... has no such message; invent another", written)
