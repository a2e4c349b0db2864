"""The examples of README.md and docs/api.md against a service of the shipped models: what is printed is what a reader gets."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from reward_client import RewardClient
from tests.conftest import Serve
from tests.examples import ADDRESS, PAGES, ROOT, find_examples, read_values, select, send

TOLERANCE = 1e-3


def assert_like(got: Any, printed: Any, place: str = "the answer") -> None:
    """The same keys, lengths, words; numbers within a thousandth."""
    if isinstance(printed, dict):
        assert isinstance(got, dict), place
        assert set(got) == set(printed), place
        for key, value in printed.items():
            assert_like(got[key], value, f"{place}.{key}")
    elif isinstance(printed, list):
        assert isinstance(got, list), place
        assert len(got) == len(printed), place
        for i, (one, other) in enumerate(zip(got, printed, strict=True)):
            assert_like(one, other, f"{place}[{i}]")
    elif isinstance(printed, float):
        assert got == pytest.approx(printed, abs=TOLERANCE), place
    else:
        assert got == printed, place


@pytest.fixture(scope="module")
def shipped(serve: Serve) -> Iterator[httpx.Client]:
    """A server of the two checkpoints in models/."""
    models = {f"{name}_model": str(ROOT / "models" / name) for name in ("safety", "helpfulness")}
    with serve(**models) as client:
        yield client


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_curl_gets_the_answer_that_is_printed_below_it(shipped: httpx.Client, page: Path) -> None:
    examples = find_examples(page.read_text(encoding="utf-8"))
    assert examples, f"{page.name} shows no curl in a ```console block"
    for example in examples:
        response = send(shipped, example.request)
        assert response.status_code == 200, (example.request, response.text)
        assert example.printed, f"{page.name} prints no answer of {shlex.join(example.request)}"
        assert_like(list(example.shown(response.json())), example.printed_values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_prints_what_its_comments_say(
    shipped: httpx.Client, monkeypatch: pytest.MonkeyPatch, page: Path
) -> None:
    """A line `print(...)  # words` prints these words, numbers within a thousandth."""
    found = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert found, f"{page.name} shows no ```python block"
    monkeypatch.syspath_prepend(str(ROOT))
    address = str(shipped.base_url).rstrip("/")
    for block in found:
        code, _ = ADDRESS.subn(address, block)
        printed = StringIO()
        with redirect_stdout(printed):
            names: dict[str, Any] = {"__name__": "__main__"}
            exec(compile(code, page.name, "exec"), names)  # noqa: S102 - our own pages
        for value in names.values():
            if isinstance(value, RewardClient | httpx.Client):  # an example need not close what its process will
                value.close()
        expected = re.findall(r"^print\(.*\)\s+#\s*(.+)$", block, flags=re.MULTILINE)
        lines = printed.getvalue().splitlines()
        assert len(lines) >= len(expected)
        for line, words in zip(lines, expected, strict=False):
            assert_same_words(line, words)


NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def assert_same_words(line: str, words: str) -> None:
    assert NUMBER.sub("#", line).split() == NUMBER.sub("#", words).split()
    numbers = [float(number) for number in NUMBER.findall(words)]
    assert [float(number) for number in NUMBER.findall(line)] == pytest.approx(numbers, abs=TOLERANCE)


# -- the reader itself ------------------------------------------------------------------------------------------------

SAMPLE = """
```console
$ make serve
$ curl -s http://127.0.0.1:8000/score -H 'Content-Type: application/json' \\
    -d '{"items": [
         {"text": "a"}]}' | jq -c '.results[]'
1.5
{"b":2}
```
"""


def test_the_reader_finds_a_command_over_several_lines_its_filter_and_its_answer() -> None:
    (example,) = find_examples(SAMPLE)
    assert example.request[:3] == ["curl", "-s", "http://127.0.0.1:8000/score"]
    assert json.loads(example.request[-1]) == {"items": [{"text": "a"}]}
    assert list(example.shown({"results": [1.5, {"b": 2}]})) == example.printed_values() == [1.5, {"b": 2}]
    assert example.text({"results": [1.5000001, {"b": 2}]}) == example.printed


def test_a_filter_selects_as_jq_does() -> None:
    value = {"a": [{"b": 1}, {"b": 2}]}
    assert list(select(value, ".")) == [value]
    assert list(select(value, ".a[1].b")) == [2]
    assert list(select(value, ".a[].b")) == [1, 2]
    with pytest.raises(ValueError, match="is no path"):
        list(select(value, ".a | length"))


def test_values_are_read_one_behind_the_other() -> None:
    assert read_values('{"a": 1}\n[2]\n3\n') == [{"a": 1}, [2], 3]


def test_the_comparison_sees_a_number_a_key_and_a_word_that_differ() -> None:
    printed = {"a": [1.0, "x"], "b": None}
    assert_like({"a": [1.0005, "x"], "b": None}, printed)
    for wrong in (
        {"a": [1.01, "x"], "b": None},
        {"a": [1.0, "x"]},
        {"a": [1.0, "y"], "b": None},
        {"a": [1.0], "b": None},
    ):
        with pytest.raises(AssertionError):
            assert_like(wrong, printed)
