"""Log lines: JSON for machines, plain for a terminal, one a request; never a text, an API key or an exception's message.

Everybody logs through the standard library, uvicorn and transformers included. The handler only queues; a thread of its
own formats and writes, so that a disk that is full or a pipe that nobody reads costs lines, which are counted, and never
holds up an answer.
"""

import asyncio
import json
import logging
import os
import select
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TextIO

from pydantic_core import PydanticSerializationError, to_json

from app.record import Record, current

LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

MAX_QUEUED_LINES = 10_000
LINES_A_WRITE = 500
GATHER_SECONDS = 0.05
"""How long the writer lets lines gather: to be woken for each would cost a busy service more than to write them."""
CLOSE_SECONDS = 1.0
"""How long the last lines may take at the end."""
PROBES = frozenset({"/health", "/ready", "/metrics"})

logger = logging.getLogger(__name__)
requests = logging.getLogger("app.requests")
PLAIN_LINE = logging.LogRecord(requests.name, logging.INFO, "", 0, "", None, None).__dict__


@contextmanager
def written(log_format: LogFormat, level: LogLevel, stream: TextIO | None) -> Iterator[None]:
    """Has all log lines written to the stream for as long as the context lasts; to nowhere where that is None.

    The level is that of the service's own lines; libraries' are written from warnings on.
    """
    is_text = log_format == "text" or (log_format == "auto" and stream is not None and stream.isatty())
    handler = QueuedHandler(as_text if is_text else as_json, stream)
    own_level = getattr(logging, level.upper())
    with taken_over(handler, own_level):
        handler.writer.start()
        try:
            yield
        finally:
            handler.writer.stop()


def num_dropped() -> int:
    """Lines that were not written, since their thread could not keep up or the stream refused them."""
    handlers = logging.getLogger().handlers
    return sum(handler.writer.num_dropped for handler in handlers if isinstance(handler, QueuedHandler))


def log_request(record: Record, seconds: float) -> None:
    """The request's one line; a probe's is for debugging, unless it failed."""
    is_fault = record.status >= 500  # noqa: PLR2004 - the server's
    level = logging.WARNING if is_fault else logging.DEBUG if record.route in PROBES else logging.INFO
    if requests.isEnabledFor(level):
        requests.handle(RequestLine(level, record, seconds))


class RequestLine(logging.LogRecord):
    """Without what a `LogRecord` finds out of its process, thread and place, which nobody is shown."""

    def __init__(self, level: int, record: Record, seconds: float) -> None:
        self.__dict__ = PLAIN_LINE | {
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": f"{record.method} {record.route} {record.status}",
            "created": time.time(),
            "fields": fields_of(record, seconds),
        }


def fields_of(record: Record, seconds: float) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "method": record.method,
        "route": record.route,
        "status": record.status,
    }
    if record.code is not None:
        fields["code"] = record.code
    if record.num_items is not None:
        fields["items"] = record.num_items
    if record.times is not None:
        fields["tokens"], fields["computed_tokens"] = record.num_tokens, record.num_computed_tokens
        fields["queue_ms"] = round(record.times.queue_seconds * 1000, 3)
    fields["total_ms"] = round(seconds * 1000, 3)
    if record.trace_id is not None:
        fields["trace_id"] = record.trace_id
    return fields


def log_loop_fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For `set_exception_handler`: asyncio's own would show the arguments of what failed."""
    logger.error("an unexpected fault in the event loop", exc_info=context.get("exception"))


# -- formats ------------------------------------------------------------------------------------------------------------


def as_json(line: logging.LogRecord) -> str:
    """One line, in ASCII: nothing in it can end it or steer a terminal."""
    content = {
        "time": f"{utc_second(int(line.created))}.{int(line.created % 1 * 1000):03}+00:00",
        "level": line.levelname.lower(),
        "logger": line.name,
        "message": line.getMessage(),
        **getattr(line, "fields", {}),
    }
    if line.exc_info and line.exc_info[1]:
        content["exception"] = stack_of(line.exc_info[1])
    return encode(content)


def encode(content: dict[str, Any]) -> str:
    """By pydantic, which is four times as fast, unless there are other letters: those it leaves as they are."""
    try:
        encoded = to_json(content)
    except PydanticSerializationError:  # half a character
        return json.dumps(content)
    return encoded.decode() if encoded.isascii() else json.dumps(content)


@lru_cache(maxsize=8)
def utc_second(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def as_text(line: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(line.created, UTC).astimezone().strftime("%H:%M:%S")
    fields = dict(getattr(line, "fields", {}))
    said = "  ".join([line.getMessage(), *words_of(fields)])
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in said)
    if line.exc_info and line.exc_info[1]:
        shown += "\n" + stack_of(line.exc_info[1])
    return f"{time} {line.levelname:7} {shown}"


def words_of(fields: dict[str, Any]) -> Iterator[str]:
    """A request's fields, but for those that its message has."""
    units = {"code": "", "items": " items", "tokens": " tokens", "computed_tokens": " computed"}
    yield from (f"{fields[name]}{unit}" for name, unit in units.items() if name in fields)
    yield from (f"{name} {fields[f'{name}_ms']:.1f} ms" for name in ("queue", "total") if f"{name}_ms" in fields)
    yield from (fields[name] for name in ("request_id", "trace_id") if name in fields)


def stack_of(error: BaseException) -> str:
    """Where it was raised and of what type, with what caused it. No message: it may quote what a client sent."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(parts) < 5:  # noqa: PLR2004 - enough to understand, and an end to circles
        frames = "".join(traceback.format_tb(cause.__traceback__))
        parts.append(f"{frames}{type(cause).__module__}.{type(cause).__qualname__}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\ncaused by\n".join(parts)


# -- the way out --------------------------------------------------------------------------------------------------------


class QueuedHandler(logging.Handler):
    """Hands lines to its writer and returns at once, whatever becomes of them."""

    def __init__(self, render: Callable[[logging.LogRecord], str], stream: TextIO | None) -> None:
        super().__init__()
        self.writer = Writer(render, stream)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if record.args:  # now: what they show may change, and must not live longer for it
                record.msg, record.args = record.getMessage(), None
        except Exception:  # noqa: BLE001 - a line that cannot be made is no reason to fail what it was about
            self.writer.num_dropped += 1
            return
        request = current()
        if request is not None and not hasattr(record, "fields"):
            record.fields = {"request_id": request.request_id}
        self.writer.put(record)


class Writer(threading.Thread):
    """Formats and writes lines to a file descriptor.

    Past the stream's own buffer, whose lock would keep the interpreter from ending while a write is stuck.
    """

    def __init__(self, render: Callable[[logging.LogRecord], str], stream: TextIO | None) -> None:
        super().__init__(name="log-writer", daemon=True)
        self.num_dropped = 0
        self._render = render
        self._fd = descriptor_of(stream)
        self._lines: deque[logging.LogRecord] = deque()
        self._wake = threading.Event()
        self._stopped = threading.Event()

    def put(self, line: logging.LogRecord) -> None:
        if self._fd is None or len(self._lines) >= MAX_QUEUED_LINES:
            self.num_dropped += 1
            return
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def stop(self) -> None:
        """Writes what is left, unless that takes too long."""
        self._stopped.set()
        self._wake.set()
        self.join(CLOSE_SECONDS)

    def run(self) -> None:
        while not self._stopped.is_set():
            self._wake.wait()
            self._stopped.wait(GATHER_SECONDS)
            self._wake.clear()
            while self._lines:
                self._write([self._lines.popleft() for _ in range(min(len(self._lines), LINES_A_WRITE))])

    def _write(self, lines: list[logging.LogRecord]) -> None:
        try:
            content = "".join(f"{self._render(line)}\n" for line in lines).encode(errors="backslashreplace")
            while content:
                content = content[self._write_some(content) :]
        except Exception:  # noqa: BLE001 - there is nobody left to tell
            self.num_dropped += len(lines)

    def _write_some(self, content: bytes) -> int:
        assert self._fd is not None
        try:
            return os.write(self._fd, content)
        except BlockingIOError:  # whoever shares the pipe has made it so
            select.select([], [self._fd], [], 1)
            return 0


def descriptor_of(stream: TextIO | None) -> int | None:
    """None where there is none: a closed standard error's number may by now be that of a file or a connection."""
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None


@contextmanager
def taken_over(handler: logging.Handler, own_level: int) -> Iterator[None]:
    """All loggers' lines go to the one handler, Python's warnings too; as it was before when the context ends."""
    root, own = logging.getLogger(), logging.getLogger("app")
    named = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    before = [(each, each.handlers, each.propagate, each.level) for each in (root, *named)]
    for each in named:
        if each.handlers:
            each.handlers, each.propagate = [], True
    root.handlers = [handler]
    root.setLevel(max(own_level, logging.WARNING))
    own.setLevel(own_level)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        for each, handlers, propagate, level in before:
            each.handlers, each.propagate = handlers, propagate
            each.setLevel(level)
