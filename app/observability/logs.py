"""Logging: one line per request, JSON for machines or text for a terminal; never a text, an API key or an exception's message.

All code logs through the standard library, uvicorn and transformers included. A full disk or a pipe that nobody reads
costs lines, which are counted, and never delays a response.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO

from app.observability.log_formats import JSONFormatter, TextFormatter
from app.observability.log_queue import LogQueue
from app.observability.request_context import RequestContext

LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

READY_PATH = "/ready"
PROBES = frozenset({"/health", READY_PATH, "/metrics"})
FIRST_SERVER_ERROR = 500

logger = logging.getLogger(__name__)
requests = logging.getLogger("app.requests")
EMPTY_RECORD = logging.LogRecord(requests.name, logging.INFO, "", 0, "", None, None).__dict__


@contextmanager
def log_to(log_format: LogFormat, level: LogLevel, stream: TextIO | None) -> Iterator[None]:
    """Writes all log records to the stream while the context lasts; drops them if the stream is None.

    `level` is the minimum level of the service's own loggers; other libraries' are logged at warning and above. "auto"
    means text on a terminal and JSON elsewhere.
    """
    is_text = log_format == "text" or (log_format == "auto" and stream is not None and stream.isatty())
    handler = LogQueue(TextFormatter() if is_text else JSONFormatter(), stream)
    with replace_handlers(handler, getattr(logging, level.upper())):
        handler.start()
        try:
            yield
        finally:
            handler.stop()


def num_dropped() -> int:
    """Records that were not written, because the writer was too slow or the stream failed."""
    return sum(handler.num_dropped for handler in logging.getLogger().handlers if isinstance(handler, LogQueue))


def log_request(context: RequestContext, seconds: float) -> None:
    """Logs the request's line: at warning for a 5xx, at debug for a probe, else at info.

    A 503 of `/ready` is no error: clients poll it until the models are loaded.
    """
    is_fault = context.status >= FIRST_SERVER_ERROR and context.route != READY_PATH
    level = logging.WARNING if is_fault else logging.DEBUG if context.route in PROBES else logging.INFO
    if requests.isEnabledFor(level):
        requests.handle(RequestRecord(level, context, seconds))


class RequestRecord(logging.LogRecord):
    """The record of a request's line.

    `logging.makeLogRecord` would take 2 us more, 1 % of a short request: it looks up the process, the thread and the
    source location, which our formatters do not show.
    """

    def __init__(self, level: int, context: RequestContext, seconds: float) -> None:
        self.__dict__ = EMPTY_RECORD | {
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": f"{context.method} {context.route} {context.status}",
            "created": time.time(),
            "fields": request_fields(context, seconds),
        }


def request_fields(context: RequestContext, seconds: float) -> dict[str, Any]:
    """The facts of a request's line. `seconds` is its total duration."""
    fields: dict[str, Any] = {
        "request_id": context.request_id,
        "method": context.method,
        "route": context.route,
        "status": context.status,
    }
    if context.code is not None:
        fields["code"] = context.code
    if context.num_items is not None:
        fields["items"] = context.num_items
    if context.times is not None:
        fields["tokens"], fields["computed_tokens"] = context.num_tokens, context.num_computed_tokens
        fields["cached_tokens"] = context.num_cached_tokens
        fields["queue_ms"] = round(context.times.queue_seconds * 1000, 3)
    fields["total_ms"] = round(seconds * 1000, 3)
    if context.trace_id is not None:
        fields["trace_id"] = context.trace_id
    return fields


def log_loop_fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For `loop.set_exception_handler`: asyncio's own handler would log the arguments of the failed callback."""
    logger.error("an unexpected error in the event loop", exc_info=context.get("exception"))


@contextmanager
def replace_handlers(handler: logging.Handler, own_level: int) -> Iterator[None]:
    """Sends the records of all loggers, and Python's warnings, to this one handler; restores everything at the end."""
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
