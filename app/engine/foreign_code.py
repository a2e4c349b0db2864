"""Calls of a checkpoint's tokenizer and chat template, whose exceptions become ForeignCodeError.

A Rust panic arrives in Python as `pyo3_runtime.PanicException`, a BaseException: `except Exception` misses it, and it
would end the thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import one_line


class ForeignCodeError(Exception):
    """A tokenizer or a chat template raised; the message is one line."""


@contextmanager
def foreign_code() -> Iterator[None]:
    """Turns whatever is raised inside into a ForeignCodeError, except KeyboardInterrupt, SystemExit and GeneratorExit."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ForeignCodeError(one_line(error)) from error
