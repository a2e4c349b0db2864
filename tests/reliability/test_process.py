"""What happens to processes: they are killed, their disk is full, nobody reads their log, their files change."""

import io
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import pytest

from reward_client import RewardClient
from reward_client.exchange import Retry
from tests.api.asking import LOCK, TEA, ask
from tests.forked import forked
from tests.models import make_model
from tests.processes import SERVE, Process, environment, free_port, read_on, url_from

FULL = Path("/dev/full")
SECONDS = 400.0
"""Far more than a service needs to start again on a busy machine."""


def process(directory: Path, *flags: str, stderr: int | IO[bytes], before: str = "") -> AbstractContextManager[Process]:
    """The service on the checkpoint in `directory`, after the statements `before`."""
    models = {"REWARD_SAFETY_MODEL": "", "REWARD_HELPFULNESS_MODEL": str(directory)}
    python, flag, program, *words = SERVE
    return forked([python, flag, before + program, *words, *flags], env=environment(**models), stderr=stderr)


@dataclass
class Served:
    process: Process
    client: httpx.Client


@contextmanager
def served(directory: Path, *flags: str, stderr: IO[bytes], before: str = "") -> Iterator[Served]:
    """The service once it is ready. It must end with 0 when it is told to, whatever was done to it."""
    port = str(free_port())
    with process(directory, "--port", port, *flags, stderr=stderr, before=before) as running:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            wait_until_ready(running, client)
            yield Served(running, client)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 0


def wait_until_ready(started: Process, client: httpx.Client) -> None:
    while started.poll() is None:
        with suppress(httpx.TransportError):
            if client.get("/ready").status_code == 200:
                return
        time.sleep(0.1)  # a process that starts says so nowhere but in its log
    raise AssertionError(f"it ended with {started.returncode}")


def test_a_client_that_retries_loses_nothing_when_the_process_is_killed_and_restarted(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "model", seed=3)
    flags = ("--port", str(free_port()))
    items = [{"text": f"text number {i}"} for i in range(40)]
    with ThreadPoolExecutor(8) as pool, process(directory, *flags, stderr=subprocess.PIPE) as first:
        url = url_from(first)
        read_on(first)
        retry = Retry(max_attempts=1000, max_seconds=1.0)
        with RewardClient(url, retry=retry, deadline_seconds=SECONDS) as client:
            alone = [client.score([item]) for item in items]
            asked = [pool.submit(client.score, [items[i % 40]]) for i in range(400)]
            wait(asked, return_when=FIRST_COMPLETED)
            first.send_signal(signal.SIGKILL)
            assert first.wait(timeout=30) == -signal.SIGKILL
            assert not all(each.done() for each in asked)
            with process(directory, *flags, stderr=subprocess.DEVNULL):
                answers = [each.result(timeout=SECONDS) for each in asked]
    assert [a.results for a in answers] == [alone[i % 40].results for i in range(400)]


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has a device that is always full")
def test_a_log_on_a_full_disk_disturbs_nobody(tmp_path: Path) -> None:
    with FULL.open("wb") as full, served(make_model(tmp_path), stderr=full) as service:
        for _ in range(50):
            ask(service.client, "/score", {"items": [TEA, LOCK]})
        assert service.client.post("/score", content=b"{").status_code in {400, 415}


MAX_FILES = 256
FEW_FILES = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, {MAX_FILES}))\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), seed=4)


@pytest.fixture(scope="module")
def neglected(directory: Path) -> Iterator[httpx.Client]:
    """A client of a service that may open few files, and whose log nobody reads from the first request on."""
    reader, writer = os.pipe()
    with (
        os.fdopen(reader, "rb"),
        os.fdopen(writer, "wb", buffering=0) as pipe,
        served(directory, stderr=pipe, before=FEW_FILES) as service,
    ):
        fill(pipe)
        yield service.client


def fill(pipe: io.FileIO) -> None:
    """With as much as it holds, so that the next line waits for a reader."""
    os.set_blocking(pipe.fileno(), False)
    while pipe.write(bytes(select.PIPE_BUF)):
        pass
    os.set_blocking(pipe.fileno(), True)


def test_a_log_that_nobody_reads_disturbs_nobody(neglected: httpx.Client) -> None:
    for _ in range(50):
        ask(neglected, "/score", {"items": [TEA]})


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one(neglected: httpx.Client) -> None:
    with open_connections(neglected, MAX_FILES - 100):
        ask(neglected, "/score", {"items": [TEA]})
        with httpx.Client(base_url=neglected.base_url, timeout=60, trust_env=False) as newcomer:
            ask(newcomer, "/score", {"items": [TEA]})


def test_a_flood_beyond_the_open_files_passes_and_leaves_the_service_well(neglected: httpx.Client) -> None:
    ask(neglected, "/score", {"items": [TEA]})  # so that it has a connection
    with open_connections(neglected, MAX_FILES + 100):
        ask(neglected, "/score", {"items": [TEA]})
    with httpx.Client(base_url=neglected.base_url, timeout=60, trust_env=False) as newcomer:
        ask(newcomer, "/score", {"items": [TEA]})


def test_a_checkpoint_that_is_cut_off_or_deleted_on_disk_serves_on(neglected: httpx.Client, directory: Path) -> None:
    file = directory / "model.safetensors"
    before = ask(neglected, "/score", {"items": [TEA, LOCK]})["results"]
    os.truncate(file, 100)
    assert ask(neglected, "/score", {"items": [TEA, LOCK]})["results"] == before
    file.unlink()
    assert ask(neglected, "/score", {"items": [TEA, LOCK]})["results"] == before


@contextmanager
def open_connections(client: httpx.Client, count: int) -> Iterator[None]:
    """That many more, on which nothing is sent."""
    address = client.base_url.host, client.base_url.port or 0
    with ExitStack() as opened:
        for _ in range(count):
            opened.enter_context(socket.create_connection(address, timeout=60))
        yield
