"""The results of a file's lines, one JSON object per line: to standard output, or to a file that a later run can continue.

While a run writes OUT.partial.jsonl, OUT.partial.jsonl.run beside it says which run that is: its route, its options and the
versions of its models. Both are gone when the run has ended.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic_core import from_json

from app.errors import InvalidInputError, StartError
from app.files.output import is_replaceable, partial_of, require_file_location

Fields = dict[str, Any]
RECOMPUTED = frozenset({"margin"})
"""Fields of a line whose place a result's field takes."""


class Results(Protocol):
    """Where results go. Use as a context: results are complete only where it ends without an error."""

    num_done: int
    """Lines whose results an earlier run has written."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...
    def begin(self, run: Fields) -> None: ...
    def write(self, rows: Sequence[Fields]) -> None: ...


class Printed:
    """Results to standard output."""

    num_done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            sys.stdout.flush()  # here, so that a reader that has gone is noticed here

    def begin(self, run: Fields) -> None:
        pass

    def write(self, rows: Sequence[Fields]) -> None:
        sys.stdout.writelines(json.dumps(row) + "\n" for row in rows)


class ResultFile:
    """Results to a file, which appears when all are written."""

    def __init__(self, path: Path, lines: Sequence[Fields], *, resume: bool) -> None:
        """Opens the partial file. Raises StartError where it cannot be resumed, or would be overwritten."""
        self._target = require_file_location(path)
        self._replaces = is_replaceable(self._target)
        self._partial = partial_of(self._target) if self._replaces else self._target
        self._run_file = self._partial.with_name(f"{self._partial.name}.run")
        has_partial = self._replaces and self._run_file.exists() and self._partial.exists()
        if has_partial and not resume:
            raise StartError(
                f"{self._partial} has the results of a run that did not end; add --resume to continue it, or delete it"
            )
        self.num_done = check_done(self._partial, lines) if has_partial else 0
        self._resumes = has_partial
        self._file = self._partial.open("a" if has_partial else "w", encoding="utf-8")
        self._num_written = self.num_done

    def begin(self, run: Fields) -> None:
        """Notes which run this is; raises StartError where it is not the run that the partial file is of."""
        if self._resumes:
            first = object_of(self._run_file.read_bytes())
            if first is None:
                raise StartError(
                    f"{self._run_file} does not say what {self._partial.name} is the output of; delete both, and start again"
                )
            for name in run.keys() | first.keys():
                if run.get(name) != first.get(name):
                    raise StartError(
                        f"{name} is {run.get(name)}, but {self._partial} was begun with {first.get(name)}; "
                        "resume it as it was begun, or delete it"
                    )
        elif self._replaces:
            self._run_file.write_text(json.dumps(run) + "\n", encoding="utf-8")

    def write(self, rows: Sequence[Fields]) -> None:
        self._file.writelines(json.dumps(row) + "\n" for row in rows)
        self._file.flush()
        self._num_written += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if not self._replaces:
            return
        if kind is None:
            self._partial.replace(self._target)
            self._run_file.unlink(missing_ok=True)
        elif self._num_written:
            sys.stderr.write(
                f"the first {self._num_written} results are in {self._partial}; --resume continues after them\n"
            )
        else:
            self._partial.unlink(missing_ok=True)
            self._run_file.unlink(missing_ok=True)


def check_done(partial: Path, lines: Sequence[Fields]) -> int:
    """How many of the lines have their result in the file, from which a last line that is cut off is removed.

    Raises InvalidInputError where a result is not of the line in its place.
    """
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    done = whole.splitlines()
    if len(done) > len(lines):
        raise InvalidInputError(f"{partial} has {len(done)} results, but the input has {len(lines)} lines")
    for number, (row, line) in enumerate(zip(done, lines, strict=False), 1):
        result = object_of(row)
        if result is None or any(result.get(name) != value for name, value in line.items() if name not in RECOMPUTED):
            raise InvalidInputError(
                f"result {number} of {partial} is not of the input's line {number}; resume with the same input, or delete it"
            )
    if len(whole) < len(content):
        with partial.open("r+b") as file:
            file.truncate(len(whole))
    return len(done)


def object_of(content: bytes) -> Fields | None:
    """The JSON object; None for anything else."""
    try:
        value = from_json(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
