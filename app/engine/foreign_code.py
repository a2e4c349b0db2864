"""Calls into code that is not ours: tokenizers and chat templates. What they raise becomes an ordinary exception.

A panic in Rust reaches Python as `pyo3_runtime.PanicException`, which is a BaseException: `except Exception` lets it
pass, and it would end the thread it was raised in.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import one_line


class ForeignCodeError(Exception):
    """Foreign code raised; the message is one line."""


@contextmanager
def foreign_code() -> Iterator[None]:
    """Turns whatever is raised inside into a ForeignCodeError. Ctrl+C and an exit pass."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ForeignCodeError(one_line(error)) from error
