"""Log formats: JSON for machines, plain text for a terminal. Neither shows an exception's message.

A record's `fields` attribute is a dict of further facts, such as a request's id and counts. Every other attribute that a
caller sets on a record is ignored.
"""

import json
import logging
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pydantic_core import PydanticSerializationError, to_json
from typing_extensions import override

MAX_CAUSES = 5
"""How many exceptions of a chain of causes are shown; a chain may be a cycle."""


class JSONFormatter(logging.Formatter):
    """One JSON object per record, on one line of ASCII, so no message can start a new line or control a terminal."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": f"{utc_second(int(record.created))}.{int(record.created % 1 * 1000):03}+00:00",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info and record.exc_info[1]:
            content["exception"] = format_exception(record.exc_info[1])
        return encode(content)


class TextFormatter(logging.Formatter):
    """One line per record in local time, followed by the stack trace if the record has an exception."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        message = "  ".join([record.getMessage(), *words_of(fields_of(record))])
        shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in message)
        if record.exc_info and record.exc_info[1]:
            shown += "\n" + format_exception(record.exc_info[1])
        return f"{self.formatTime(record, '%H:%M:%S')} {record.levelname:7} {shown}"


def encode(content: dict[str, Any]) -> str:
    """ASCII JSON. pydantic's encoder takes a quarter of the time, but leaves other characters unescaped."""
    try:
        encoded = to_json(content)
    except PydanticSerializationError:  # a lone surrogate
        return json.dumps(content)
    return encoded.decode() if encoded.isascii() else json.dumps(content)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


@lru_cache(maxsize=8)
def utc_second(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def words_of(fields: dict[str, Any]) -> Iterator[str]:
    """A request's fields that are not in its message, with their units."""
    units = {"code": "", "items": " items", "tokens": " tokens", "computed_tokens": " computed"}
    yield from (f"{fields[name]}{unit}" for name, unit in units.items() if name in fields)
    yield from (f"{name} {fields[f'{name}_ms']:.1f} ms" for name in ("queue", "total") if f"{name}_ms" in fields)
    yield from (fields[name] for name in ("request_id", "trace_id") if name in fields)


def format_exception(error: BaseException) -> str:
    """The stack trace and type of the exception and of its causes, without messages: one may quote a client's text."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(parts) < MAX_CAUSES:
        frames = "".join(traceback.format_tb(cause.__traceback__))
        parts.append(f"{frames}{type(cause).__module__}.{type(cause).__qualname__}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\ncaused by\n".join(parts)
