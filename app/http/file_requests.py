"""Sends the lines of a file to a route, many per request, for the commands `score`, `compare` and `evaluate`."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from app.api.bodies import parse
from app.api.compare_schemas import CompareRequest
from app.api.schemas import ScoreRequest
from app.errors import InvalidInputError
from app.files.jsonl import Line, name_of
from app.files.results import Results
from app.http.in_process import LINES_PER_REQUEST, RefusedError, RouteClient

REQUESTS: dict[str, tuple[str, type[ScoreRequest | CompareRequest]]] = {
    "/score": ("items", ScoreRequest),
    "/compare": ("pairs", CompareRequest),
}
"""By path, the name of the list of entries, and the body's type."""
Entries = Sequence[tuple[int, bytes]]
"""Line numbers of the file, each with the JSON of its entry."""


def check_entries(
    file: str, entries: Entries, path: str, options: dict[str, Any], size: int = LINES_PER_REQUEST
) -> None:
    """Raises InvalidInputError with the number of the first invalid line. Loads no model."""
    name, body_type = REQUESTS[path]
    for chunk in chunks(entries, size):
        try:
            parse(body_type, body_of(options, name, chunk))
        except InvalidInputError as error:
            raise in_file(file, chunk, error) from None


async def answer_lines(
    make_client: Callable[[], RouteClient],
    file: str,
    lines: Sequence[Line],
    path: str,
    options: dict[str, Any],
    results: Results,
) -> None:
    """Writes one result per line, in order, with the line's own fields. A summary of pairs goes to standard error."""
    left = lines[results.num_done :]
    written = 0
    summaries: list[dict[str, Any]] = []

    def take(answer: dict[str, Any]) -> None:
        nonlocal written
        rows = answer["results"]
        done = left[written : written + len(rows)]
        results.write([line.fields | row for line, row in zip(done, rows, strict=True)])
        written += len(rows)
        summaries.extend([answer["summary"]] if "summary" in answer else [])

    with results:
        async with make_client() as client:
            info = await client.info()
            versions = {name: model["version"] for name, model in info["models"].items()}
            results.begin({"path": path, "options": options, "models": versions})
            await ask(client, file, [(line.number, line.entry) for line in left], path, options, take)
    if summaries:
        sys.stderr.write(f"{summary_line(summaries)}\n")


def summary_line(summaries: list[dict[str, Any]]) -> str:
    """One line that combines the summaries of all requests."""
    count = sum(summary["count"] for summary in summaries)
    means = {
        name: sum(summary[name] * summary["count"] for summary in summaries) / count
        for name in ("accuracy", "loss", "loss_with_margin")
    }
    return f"{count} pairs: " + ", ".join(f"{name} {value:.4f}" for name, value in means.items())


async def ask(
    client: RouteClient,
    file: str,
    entries: Entries,
    path: str,
    options: dict[str, Any],
    take: Callable[[dict[str, Any]], None],
) -> None:
    """Sends the entries to the route, many per request, with a progress bar, and calls `take` with each answer.

    Raises InvalidInputError with the file and the number of the line that was rejected.
    """
    name, _ = REQUESTS[path]
    with tqdm(total=len(entries), unit=name[:-1], disable=None) as bar:
        for chunk in chunks(entries, client.max_items):
            try:
                answer = await client.post(path, body_of(options, name, chunk))
            except RefusedError as error:
                raise in_file(file, chunk, error) from None
            take(answer)
            bar.update(len(chunk))


def chunks(entries: Entries, size: int) -> Iterator[Entries]:
    return (entries[start : start + size] for start in range(0, len(entries), size))


def body_of(options: dict[str, Any], name: str, entries: Entries) -> bytes:
    """The JSON body: the options, and the entries as the list `name`."""
    start = json.dumps(options).encode().removesuffix(b"}")
    return start + f', "{name}": ['.encode() + b",".join(entry for _, entry in entries) + b"]}"


def in_file(file: str, entries: Entries, error: InvalidInputError | RefusedError) -> Exception:
    """The error with the number of its line; unchanged if it concerns no single line."""
    return error if error.item is None else InvalidInputError(f"{name_of(file)} line {entries[error.item][0]}: {error}")
