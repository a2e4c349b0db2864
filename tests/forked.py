"""Python programs in processes that are forked from one which has imported the service.

A start takes a ninth of the processor time. Not for programs that depend on variables which libraries read at their import, such as those of the hub.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import IO
from unittest.mock import patch

from tests.processes import environment

IMPORTED = ["app.cli", "app.http.server", "app.main", "accelerate", "transformers.models.llama.modeling_llama"]


class Forked:
    """As much of `subprocess.Popen` as the tests use."""

    def __init__(self, process: BaseProcess, stderr: IO[str] | None) -> None:
        assert process.pid is not None
        self._process, self.pid, self.stderr = process, process.pid, stderr

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self.returncode is not None, f"it did not end within {timeout} s"
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


@contextmanager
def forked(command: Sequence[str], *, env: Mapping[str, str], stderr: int | IO[bytes]) -> Iterator[Forked]:
    """Runs `python -c program arguments`, as `tests.processes.running` does."""
    python, flag, program, *arguments = command
    assert (python, flag) == (sys.executable, "-c")
    with patch.dict(os.environ, environment(), clear=True):
        context = get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()
    reader = None
    if stderr == subprocess.PIPE:
        read_end, write_end = os.pipe()
        reader = os.fdopen(read_end, encoding="utf-8")
    else:
        write_end = os.open(os.devnull, os.O_WRONLY) if isinstance(stderr, int) else os.dup(stderr.fileno())
    with Connection(write_end, readable=False) as writer:
        process = context.Process(target=run, args=(program, arguments, dict(env), writer))
        process.start()
    try:
        yield Forked(process, reader)
    finally:
        process.kill()
        process.join()
        if reader is not None:
            reader.close()


def run(program: str, arguments: list[str], env: dict[str, str], stderr: Connection) -> None:
    """In the forked process."""
    os.dup2(stderr.fileno(), sys.stderr.fileno())
    stderr.close()
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["-c", *arguments]
    exec(program, {"__name__": "__main__"})  # noqa: S102 - our own program
