"""Lines of JSON from a file or standard input, each with its number."""

import json
import sys
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from app.errors import InvalidInputError

CARRIED = frozenset({"id", "metadata"})
"""Fields that a line may have for its owner: they are not sent, and stand in the result."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line's number from 1, its fields (none where it is no object), and the JSON that is sent for it."""

    number: int
    fields: dict[str, Any]
    entry: bytes


def read_entries(file: str) -> list[Line]:
    """The lines of a JSONL file with their fields; raises what `read_lines` raises."""
    return [line_of(file, number, content) for number, content in read_lines(file)]


def name_of(file: str) -> str:
    """What errors call a file that the command line names."""
    return "standard input" if file == "-" else file


def line_of(file: str, number: int, content: bytes) -> Line:
    """Raises InvalidInputError where a field of `CARRIED` could not stand in the result."""
    value = from_json(content)
    fields = value if isinstance(value, dict) else {}
    if carried := fields.keys() & CARRIED:
        for name in sorted(carried):
            if not is_json(fields[name]):
                raise InvalidInputError(
                    f"{name_of(file)} line {number}: {name} has NaN or an infinite number; write it as a string"
                )
        content = json.dumps({name: value for name, value in fields.items() if name not in CARRIED}).encode()
    return Line(number, fields, content)


def is_json(value: Any) -> bool:
    """Whether the value has only finite numbers, as JSON asks for."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def read_lines(file: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a JSONL file (`-`: stdin) that are not blank, with their numbers.

    Raises InvalidInputError at one that is no JSON, where there is none, and where the file cannot be read.
    """
    if file == "-":
        yield from json_lines(name_of(file), sys.stdin.buffer if sys.stdin is not None else ())
        return
    try:
        lines = Path(file).open("rb")  # noqa: SIM115 - closed below; only what opening it raises is meant
    except FileNotFoundError:
        raise InvalidInputError(f"there is no file {file}; give a JSONL file, or - for standard input") from None
    except IsADirectoryError:
        raise InvalidInputError(f"{file} is a directory; give a JSONL file") from None
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read ({error.strerror}); give a file that you may read") from None
    with lines:
        yield from json_lines(file, lines)


def json_lines(name: str, lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """As `read_lines`, for lines that come from elsewhere; `name` is what errors call them."""
    found = False
    for number, raw in enumerate(lines, 1):
        if number == 1 and raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
            raise InvalidInputError(f"{name} is UTF-16; save it as UTF-8")
        line = (raw.removeprefix(BOM_UTF8) if number == 1 else raw).strip()
        if line:
            try:
                from_json(line)  # the parser that reads requests
            except ValueError as error:
                raise InvalidInputError(f"{name} line {number} {fault_of(line, error)}") from None
            yield number, line
            found = True
    if not found:
        raise InvalidInputError(f"{name} has no lines; give one JSON object a line")


def fault_of(line: bytes, error: ValueError) -> str:
    """Why the line is not JSON, and what to do."""
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return f"has the byte 0x{line[wrong.start]:02x} at column {wrong.start + 1}, which is not UTF-8; save the file as UTF-8"
    return f"is not JSON: {str(error).replace(' at line 1 column', ' at column')}; correct it, or take the line out"
