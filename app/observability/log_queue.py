"""Writes log records to a stream without ever blocking the threads that log.

The standard library's `QueueHandler` and `QueueListener`, with three changes. The queue is bounded, and a record that
finds it full is dropped and counted. The listener writes many lines with one call, because a wake-up per line costs a
busy service more than the writing. It writes to the file descriptor itself: a `StreamHandler` holds its lock while it
writes, and the interpreter takes every handler's lock when it exits, so a pipe that nobody reads would keep the process
from ending.
"""

import logging
import os
import select
import threading
from logging.handlers import QueueHandler, QueueListener
from queue import Full, SimpleQueue
from typing import TextIO

from typing_extensions import override

from app.observability.request_context import current_request

MAX_QUEUED_RECORDS = 10_000
LINES_PER_WRITE = 500
GATHER_SECONDS = 0.05
"""How long the writer lets records gather after the first one that reaches an empty queue."""
CLOSE_SECONDS = 1.0
"""How long `stop` waits for the remaining lines."""


class LogQueue(QueueHandler):
    """The handler: queues records for its writer and returns at once. Without a stream it drops every record."""

    queue: "SimpleQueue[logging.LogRecord]"

    def __init__(self, formatter: logging.Formatter, stream: TextIO | None) -> None:
        records: SimpleQueue[logging.LogRecord] = SimpleQueue()  # unlike Queue, `put` is reentrant
        super().__init__(records)
        self._descriptor = descriptor_of(stream)
        self._writer = LogWriter(records, formatter, self._descriptor)
        self._num_dropped = 0

    @property
    def num_dropped(self) -> int:
        """Records that were not written: queue full, not formattable, or the stream failed."""
        return self._num_dropped + self._writer.num_dropped

    def start(self) -> None:
        self._writer.start()

    def stop(self) -> None:
        """Writes the remaining lines; returns after `CLOSE_SECONDS` even if a write is stuck."""
        self._writer.stop()

    @override
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Formats the message now, because its arguments may change and would stay in memory while they are queued.

        The base class also formats the exception with its message, which may quote a client's text.
        """
        if record.args:
            record.msg, record.args = record.getMessage(), None
        if not hasattr(record, "fields") and (context := current_request()) is not None:
            record.fields = {"request_id": context.request_id}
        return record

    @override
    def enqueue(self, record: logging.LogRecord) -> None:
        if self._descriptor is None or self.queue.qsize() >= MAX_QUEUED_RECORDS:
            raise Full
        super().enqueue(record)

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        """Counts the record. The base class would print it to standard error, with the message's arguments."""
        self._num_dropped += 1


class LogWriter(QueueListener):
    """The thread that formats and writes. It has no handlers: it does their work itself."""

    queue: "SimpleQueue[logging.LogRecord]"

    def __init__(
        self, records: "SimpleQueue[logging.LogRecord]", formatter: logging.Formatter, descriptor: int | None
    ) -> None:
        super().__init__(records)
        self.num_dropped = 0
        self._formatter = formatter
        self._descriptor = descriptor
        self._lines: list[str] = []
        self._stopping = threading.Event()

    @override
    def dequeue(self, block: bool) -> logging.LogRecord:
        is_idle = self.queue.empty()
        if is_idle or len(self._lines) >= LINES_PER_WRITE:
            self._write_lines()
        record = super().dequeue(block)
        if is_idle:
            self._stopping.wait(GATHER_SECONDS)
        return record

    @override
    def handle(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self._formatter.format(record))
        except Exception:  # noqa: BLE001 - logging the fault would come back here
            self.num_dropped += 1

    @override
    def stop(self) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        draining = threading.Thread(target=self._drain, name="log-drain", daemon=True)
        try:
            draining.start()
        except RuntimeError:  # no memory for a thread: write without a deadline
            self._drain()
        else:
            draining.join(CLOSE_SECONDS)

    def _drain(self) -> None:
        super().stop()
        self._write_lines()

    def _write_lines(self) -> None:
        lines, self._lines = self._lines, []
        try:
            content = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
            while content:
                content = content[self._write(content) :]
        except OSError:
            self.num_dropped += len(lines)

    def _write(self, content: bytes) -> int:
        """Returns the number of bytes written."""
        assert self._descriptor is not None
        try:
            return os.write(self._descriptor, content)
        except BlockingIOError:  # another process that shares the pipe has made it non-blocking
            select.select([], [self._descriptor], [], 1)
            return 0


def descriptor_of(stream: TextIO | None) -> int | None:
    """None if the stream is closed: its old number may by now belong to another file or a connection."""
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None
