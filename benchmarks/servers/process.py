"""A server as a process group that the benchmark starts, waits for, pauses and stops.

A paused server (SIGSTOP) uses no CPU, even if it would poll while idle, so several can keep their models in memory while one is
measured.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS = 300.0
STOP_SECONDS = 20.0


class ServerError(Exception):
    """A server did not start, or died."""


@dataclass(slots=True)
class ServerProcess:
    """A running server; `running` makes it."""

    name: str
    port: int
    log_path: Path
    start_seconds: float
    _process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self._process.pid

    def pause(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def resident_bytes(self) -> int:
        """Sum the resident memory of the group's processes; shared pages count once per process."""
        pages = sum(int(text.split()[1]) for text in self._read_all("statm"))
        return pages * os.sysconf("SC_PAGE_SIZE")

    def processor_seconds(self) -> float:
        """Sum the user and system time of the group's processes since they started, in steps of a clock tick (10 ms)."""
        fields = [text.rpartition(")")[2].split() for text in self._read_all("stat")]  # a name may have spaces
        return sum(int(own[11]) + int(own[12]) for own in fields) / os.sysconf("SC_CLK_TCK")

    def _read_all(self, name: str) -> list[str]:
        """The file of this name in /proc of each process of the group."""
        texts = []
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getpgid(int(directory.name)) == self._process.pid:
                    texts.append((directory / name).read_text())
        return texts


@contextlib.contextmanager
def running(
    name: str, command: Sequence[str], *, port: int, ready_path: str, environment: Mapping[str, str], log_dir: Path
) -> Iterator[ServerProcess]:
    """Start `command`, wait until `ready_path` answers 200, and stop the whole process group at the end.

    `environment` is added to this process's own. Output goes to a file in `log_dir`. Raises ServerError with the log's
    last lines if the server exits or is not ready within READY_SECONDS.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    log_path = log_dir / f"{name}.log"
    started = time.monotonic()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_ready(name, process, f"http://127.0.0.1:{port}{ready_path}", log_path)
        yield ServerProcess(name, port, log_path, time.monotonic() - started, process)
    finally:
        _stop(process)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(name: str, process: subprocess.Popen[bytes], url: str, log_path: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"{name} exited with {process.returncode}:\n{_tail(log_path)}")
        if _answers(url):
            return
        time.sleep(0.05)
    raise ServerError(f"{name} was not ready within {READY_SECONDS:.0f} s:\n{_tail(log_path)}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 (a local http URL)
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log_path: Path, num_lines: int = 30) -> str:
    return "\n".join(log_path.read_text(errors="replace").splitlines()[-num_lines:])
