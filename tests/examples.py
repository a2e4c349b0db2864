"""The curl commands that README.md and docs/api.md show, and the answers printed below them.

`make readme` sends each command to a service of the models in models/ and writes its answer, floats with five significant
digits. tests/test_readme.py compares what is printed with what a service answers.
"""

import asyncio
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "api.md")
ADDRESS = re.compile(r"http://(?:127\.0\.0\.1|localhost):8000")
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
STEP = re.compile(r"\.(\w+)|\[(\d*)\]")
SIGNIFICANT_DIGITS = 5


@dataclass(frozen=True)
class Example:
    """A curl command, what it is piped into, and the printed answer."""

    request: list[str]
    """curl's words."""
    jq: list[str] | None
    """jq's options and filter, where the answer goes through it."""
    command: str
    """As the page shows it, without the prompt."""
    printed: str

    def shown(self, answer: Any) -> Iterator[Any]:
        """The JSON values that the page prints of an answer."""
        path = [word for word in self.jq or () if not word.startswith("-")]
        return select(answer, path[0] if path else ".")

    def printed_values(self) -> list[Any]:
        return read_values(self.printed)

    def text(self, answer: Any) -> str:
        """The answer as jq would print it."""
        compact = self.jq is not None and "-c" in self.jq
        options: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
        return "".join(f"{json.dumps(value, ensure_ascii=False, **options)}\n" for value in self.shown(rounded(answer)))


def read_values(text: str) -> list[Any]:
    """JSON values one behind the other, as jq prints them."""
    decoder, values, rest = json.JSONDecoder(), [], text.strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        values.append(value)
        rest = rest[end:].lstrip()
    return values


def select(value: Any, path: str) -> Iterator[Any]:
    """What jq's filter gives, for paths alone: `.`, `.key`, `[index]`, `[]`. Raises ValueError for any other filter."""
    if path in {"", "."}:
        yield value
        return
    step = STEP.match(path)
    if step is None:
        raise ValueError(f"{path} is no path; a page's jq filters are paths such as .results[0].scores")
    rest = path[step.end() :]
    if step[1] is not None:
        yield from select(value[step[1]], rest)
    elif step[2]:
        yield from select(value[int(step[2])], rest)
    else:
        for each in value:
            yield from select(each, rest)


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def find_examples(text: str) -> list[Example]:
    found = []
    for block in BLOCK.findall(text):
        for prompt in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            if prompt.startswith("curl "):
                command, printed = split_command(prompt)
                words = shlex.split(command.replace("\\\n", " "))
                request, jq = words, None
                if "|" in words:
                    pipe = words.index("|")
                    request, (program, *jq) = words[:pipe], words[pipe + 1 :]
                    assert program == "jq", f"a page pipes curl into {program}"
                found.append(Example(request, jq, command, printed))
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
            return command, "".join(lines[n:])
    raise AssertionError(f"an unfinished command: {prompt}")


def curl_request(words: list[str]) -> httpx.Request:
    """What curl would send, to the path alone; knows the options that the pages use and no others."""
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
                raise AssertionError(f"a page's curl has {word}, which tests/examples.py does not know")
    assert ADDRESS.match(url), f"a page's curl asks {url}; the service's default is http://127.0.0.1:8000"
    return httpx.Request(method, url, headers=headers, content=content)


def send(client: httpx.Client, words: list[str]) -> httpx.Response:
    request = curl_request(words)
    return client.request(
        request.method, request.url.raw_path.decode(), headers=request.headers, content=request.content
    )


async def write_answers() -> None:
    """Asks the application itself, without a port, and rewrites the pages."""
    from app.http.in_process import InProcess
    from app.settings import Settings

    models = {name: str(ROOT / "models" / name) for name in ("safety", "helpfulness")}
    settings = Settings(safety_model=models["safety"], helpfulness_model=models["helpfulness"])
    async with InProcess(settings) as service:
        for page in PAGES:
            text = page.read_text(encoding="utf-8")
            for example in find_examples(text):
                response = (await service.client.send(curl_request(example.request))).raise_for_status()
                text = text.replace(example.command + example.printed, example.command + example.text(response.json()))
            page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(write_answers())
