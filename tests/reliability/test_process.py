"""What happens to processes: they are killed, their disk is full, nobody reads their log, their files change."""

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from reward_client import RewardClient
from reward_client.exchange import Retry
from tests.api.asking import LOCK, TEA, ask
from tests.models import make_model
from tests.processes import SERVE, environment, free_port, read_on, running, url_from

FULL = Path("/dev/full")


def process(
    directory: Path, *flags: str, stderr: int | IO[bytes], **options: Any
) -> AbstractContextManager["subprocess.Popen[str]"]:
    """The service on the checkpoint in `directory`."""
    models = {"REWARD_SAFETY_MODEL": "", "REWARD_HELPFULNESS_MODEL": str(directory)}
    return running([*SERVE, *flags], env=environment(**models), stderr=stderr, **options)


def address(started: "subprocess.Popen[str]") -> str:
    url = url_from(started)
    read_on(started)
    return url


@contextmanager
def client_of(url: str) -> Iterator[httpx.Client]:
    """Waits until it is ready."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        while True:
            with suppress(httpx.TransportError):
                if client.get("/ready").status_code == 200:
                    break
            time.sleep(0.1)  # a process that starts says so nowhere else
        yield client


def test_a_client_that_retries_loses_nothing_when_the_process_is_killed_and_restarted(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "model", seed=3)
    flags = ("--port", str(free_port()))
    items = [{"text": f"text number {i}"} for i in range(40)]
    with ThreadPoolExecutor(8) as pool, process(directory, *flags, stderr=subprocess.PIPE) as first:
        url = address(first)
        with RewardClient(url, retry=Retry(max_attempts=1000, max_seconds=1.0)) as client:
            alone = [client.score([item]) for item in items]
            asked = [pool.submit(client.score, [items[i % 40]]) for i in range(400)]
            wait(asked, return_when=FIRST_COMPLETED)
            first.send_signal(signal.SIGKILL)
            assert first.wait(timeout=30) == -signal.SIGKILL
            assert not all(each.done() for each in asked)
            with process(directory, *flags, stderr=subprocess.DEVNULL):
                answers = [each.result(timeout=180) for each in asked]
    assert [a.results for a in answers] == [alone[i % 40].results for i in range(400)]


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has a device that is always full")
def test_a_log_on_a_full_disk_disturbs_nobody(tmp_path: Path) -> None:
    port = free_port()
    with FULL.open("wb") as full, process(make_model(tmp_path), "--port", str(port), stderr=full) as running:
        with client_of(f"http://127.0.0.1:{port}") as client:
            for _ in range(50):
                ask(client, "/score", {"items": [TEA, LOCK]})
            assert client.post("/score", content=b"{").status_code in {400, 415}
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 0


def test_a_log_that_nobody_reads_disturbs_nobody(tmp_path: Path) -> None:
    port = free_port()
    reader, writer = os.pipe()
    with (
        os.fdopen(reader, "rb"),
        os.fdopen(writer, "wb") as pipe,
        process(make_model(tmp_path), "--port", str(port), stderr=pipe) as running,
    ):
        os.set_blocking(writer, True)
        with client_of(f"http://127.0.0.1:{port}") as client:
            for _ in range(1500):  # a pipe holds 64 KiB
                ask(client, "/score", {"items": [TEA]})
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 0


def test_a_checkpoint_that_is_cut_off_or_deleted_on_disk_serves_on(tmp_path: Path) -> None:
    directory = make_model(tmp_path, seed=4)
    with process(directory, stderr=subprocess.PIPE) as running, client_of(address(running)) as client:
        before = ask(client, "/score", {"items": [TEA, LOCK]})["results"]
        os.truncate(directory / "model.safetensors", 100)
        assert ask(client, "/score", {"items": [TEA, LOCK]})["results"] == before
        (directory / "model.safetensors").unlink()
        assert ask(client, "/score", {"items": [TEA, LOCK]})["results"] == before
        assert running.poll() is None


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one(tmp_path: Path) -> None:
    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))

    with (
        process(make_model(tmp_path), stderr=subprocess.PIPE, preexec_fn=few_files) as running,
        client_of(address(running)) as client,
        open_connections(client, 200),
    ):
        ask(client, "/score", {"items": [TEA]})


def test_a_flood_beyond_the_open_files_passes_and_leaves_the_service_well(tmp_path: Path) -> None:
    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

    with (
        process(make_model(tmp_path), stderr=subprocess.PIPE, preexec_fn=few_files) as running,
        client_of(address(running)) as client,
    ):
        with open_connections(client, 300):
            ask(client, "/score", {"items": [TEA]})  # on the connection that it has
        with httpx.Client(base_url=client.base_url, timeout=60, trust_env=False) as newcomer:
            ask(newcomer, "/score", {"items": [TEA]})


@contextmanager
def open_connections(client: httpx.Client, count: int) -> Iterator[None]:
    """That many more, on which nothing is sent."""
    address = client.base_url.host, client.base_url.port or 0
    connections = [socket.create_connection(address, timeout=60) for _ in range(count)]
    try:
        yield
    finally:
        for connection in connections:
            connection.close()
