"""The README's examples against a server: what it prints is what a reader gets."""

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

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = re.compile(r"http://(?:127\.0\.0\.1|localhost):8000")
TOLERANCE = 1e-3


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def curl_examples(text: str = README) -> list[tuple[list[str], str]]:
    """Each curl command's words, and what is printed below it."""
    found = []
    for block in blocks("console", text):
        prompts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
        for prompt in prompts:
            if prompt.startswith("curl "):
                command, answer = split_command(prompt)
                found.append((shlex.split(command), answer.strip()))
    return found


def split_command(prompt: str) -> tuple[str, str]:
    """A command ends at the first line break that is neither escaped nor inside quotes."""
    lines = prompt.splitlines(keepends=True)
    for n in range(1, len(lines) + 1):
        command = "".join(lines[:n])
        if not command.rstrip("\n").endswith("\\"):
            try:
                shlex.split(command)
            except ValueError:  # no closing quotation yet
                continue
            return command.replace("\\\n", " "), "".join(lines[n:])
    raise AssertionError(f"an unfinished command in the README: {prompt}")


def send(client: httpx.Client, words: list[str]) -> httpx.Response:
    """What curl would send; knows the options that the README uses and no others."""
    method, url, headers, content = "GET", "", {"content-type": "application/x-www-form-urlencoded"}, None
    left = iter(words[1:])
    for word in left:
        match word:
            case "-s" | "--silent" | "-sS" | "-f" | "--fail":
                pass
            case "-X" | "--request":
                method = next(left)
            case "-H" | "--header":
                name, _, value = next(left).partition(":")
                headers[name.strip().lower()] = value.strip()
            case "-d" | "--data":
                method, content = "POST", next(left)
            case "--json":
                method, content = "POST", next(left)
                headers |= {"content-type": "application/json", "accept": "application/json"}
            case _ if not word.startswith("-") and not url:
                url = word if "://" in word else f"http://{word}"
            case _:
                raise AssertionError(f"the README's curl has {word}, which this test does not know")
    path, count = ADDRESS.subn("", url)
    assert count == 1, f"the README's curl asks {url}; the service's default is http://127.0.0.1:8000"
    return client.request(method, path or "/", headers=headers, content=content)


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


def test_every_curl_gets_the_answer_that_is_printed_below_it(shipped: httpx.Client) -> None:
    examples = curl_examples()
    assert examples, "the README shows no curl in a ```console block"
    for words, printed in examples:
        response = send(shipped, words)
        assert response.status_code == 200, (words, response.text)
        assert printed, f"the README prints no answer of {shlex.join(words)}"
        assert_like(response.json(), json.loads(printed))


def test_every_python_block_prints_what_its_comments_say(
    shipped: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line `print(...)  # words` prints these words, numbers within a thousandth."""
    found = blocks("python")
    assert found, "the README shows no ```python block"
    monkeypatch.syspath_prepend(str(ROOT))
    address = str(shipped.base_url).rstrip("/")
    for block in found:
        code, _ = ADDRESS.subn(address, block)
        printed = StringIO()
        with redirect_stdout(printed):
            names: dict[str, Any] = {"__name__": "__main__"}
            exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - our own README
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
         {"text": "a"}]}'
{"results": [1.5]}
```
"""


def test_the_reader_finds_a_command_over_several_lines_and_its_answer() -> None:
    ((words, answer),) = curl_examples(SAMPLE)
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/score"]
    assert json.loads(words[-1]) == {"items": [{"text": "a"}]}
    assert json.loads(answer) == {"results": [1.5]}


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
