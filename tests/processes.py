"""Programs as processes of their own; killed at the end, whatever a test makes of them."""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
CLI = [sys.executable, "-c", "import sys; from app.cli import main; sys.exit(main())"]
SERVE = [*CLI, "serve", "--port", "0"]


def environment(**variables: str) -> dict[str, str]:
    """Of this process, without the developer's own settings, and with no way to the hub."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("REWARD_")}
    return kept | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables


class Process(Protocol):
    """What the tests use of `subprocess.Popen` and of `tests.forked.Forked`."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    @property
    def stderr(self) -> IO[str] | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...


@contextmanager
def running(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
) -> Iterator["subprocess.Popen[str]"]:
    """The command, what it writes as text; `subprocess.Popen` alone waits at its end for one that was never told to go."""
    with subprocess.Popen(command, text=True, env=env or environment(), **options) as process:  # noqa: S603 - our own commands
        try:
            yield process
        finally:
            process.kill()


def url_from(process: Process) -> str:
    """Of the line in which the service says that it is ready; AssertionError with what it said where none comes."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"ready on (http://[\w.:]+)", line):
            return found[1]
    raise AssertionError("".join(said))


def read_on(process: Process) -> None:
    """Reads and drops what it writes from here, so that it never waits for a reader."""
    assert process.stderr is not None
    threading.Thread(target=process.stderr.read, daemon=True).start()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
