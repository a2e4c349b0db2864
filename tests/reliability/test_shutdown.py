"""The process ends in time, whatever it is doing: loading from a hub or a disk that never answers, reloading, computing."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.api.asking import TEA, assert_error
from tests.forked import forked
from tests.models import make_model
from tests.processes import SERVE, Process, environment, free_port, read_on, running, url_from

SOON = 20.0
"""Seconds: below the grace period of 30 and every timeout of a hub, far above what a busy machine needs."""
KEY = "key"


@dataclass
class HangingHub:
    url: str
    is_asked: threading.Event


@pytest.fixture
def hanging_hub() -> Iterator[HangingHub]:
    """A server that takes connections and never answers."""
    is_asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    accepted.append(listener.accept()[0])
                    is_asked.set()
                except OSError:  # closed
                    return

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield HangingHub(f"http://127.0.0.1:{listener.getsockname()[1]}", is_asked)
        finally:
            for connection in accepted:
                connection.close()


def wait_until_loading(process: Process, port: int) -> None:
    """Returns once it answers that it loads."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        while process.poll() is None:
            try:
                if client.get("/health").json() == {"status": "loading"}:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)  # a process that starts says so nowhere else


def wait_until_it_hangs(process: Process) -> None:
    """Reads what it writes, up to the line of the code that hangs."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line == "hangs\n":
            return
    raise AssertionError("".join(said))


def seconds_to_end(process: Process, number: int) -> float:
    begun = time.monotonic()
    process.send_signal(number)
    process.wait(timeout=60)
    return time.monotonic() - begun


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_waits_for_a_hub_ends_at_once(hanging_hub: HangingHub, number: int) -> None:
    port = free_port()
    env = environment(HF_ENDPOINT=hanging_hub.url, HF_HUB_OFFLINE="0", REWARD_HELPFULNESS_MODEL="")
    flags = ["--port", str(port), "--safety-model", "hf:org/name"]
    with running([*SERVE, *flags], env=env, stderr=subprocess.PIPE) as process:
        wait_until_loading(process, port)
        assert hanging_hub.is_asked.wait(timeout=60)
        assert seconds_to_end(process, number) < SOON
        assert process.stderr is not None
        said = process.stderr.read()
        assert (process.returncode, "Traceback" in said) == (0, False), said


HANGING_DISK = """
import os, sys, time
import app.service as service
load = service.load_checkpoint
def read_from_a_disk_that_may_hang(source, **options):
    if os.path.exists(os.path.join(source, "hangs")):
        print("hangs", file=sys.stderr, flush=True)
        time.sleep(3600)
    return load(source, **options)
service.load_checkpoint = read_from_a_disk_that_may_hang
from app.cli import main
sys.exit(main())
"""


@contextmanager
def hanging_disk(directory: Path, *flags: str, **variables: str) -> Iterator[Process]:
    """The service on a checkpoint that is read for ever as long as `directory` has a file `hangs`."""
    models = {"REWARD_SAFETY_MODEL": "", "REWARD_HELPFULNESS_MODEL": str(directory)}
    command = [sys.executable, "-c", HANGING_DISK, "serve", *flags]
    with forked(command, env=environment(**models, **variables), stderr=subprocess.PIPE) as process:
        yield process


def test_a_start_that_waits_for_a_disk_ends_at_once(tmp_path: Path) -> None:
    port, directory = free_port(), make_model(tmp_path)
    (directory / "hangs").touch()
    with hanging_disk(directory, "--port", str(port)) as process:
        wait_until_loading(process, port)
        wait_until_it_hangs(process)
        assert seconds_to_end(process, signal.SIGTERM) < SOON
        assert process.returncode == 0


def test_a_reload_that_hangs_is_refused_and_the_process_ends(tmp_path: Path) -> None:
    directory = make_model(tmp_path)
    with (
        hanging_disk(directory, "--port", "0", REWARD_API_KEYS=KEY) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        url = url_from(process)
        (directory / "hangs").touch()
        headers = {"authorization": f"Bearer {KEY}"}
        reload = pool.submit(httpx.post, f"{url}/admin/reload", headers=headers, timeout=60, trust_env=False)
        wait_until_it_hangs(process)
        read_on(process)
        assert not reload.done()
        assert seconds_to_end(process, signal.SIGTERM) < SOON
        assert process.returncode == 0
        assert_error(reload.result(timeout=10), 503, "shutting_down")


HANGING_FORWARD = """
import sys, time
from app.engine.reward_model import RewardModel
score, calls = RewardModel.score, []
def hang(*args):
    calls.append(args)
    if len(calls) <= {num_good}:
        return score(*args)
    print("hangs", file=sys.stderr, flush=True)
    time.sleep(3600)
RewardModel.score = hang
from app.cli import main
sys.exit(main())
"""


@contextmanager
def hanging_forward(directory: Path, num_good: int, port: int, *flags: str) -> Iterator[Process]:
    """The service, whose forwards never return after the first `num_good`."""
    models = {"REWARD_SAFETY_MODEL": "", "REWARD_HELPFULNESS_MODEL": str(directory)}
    script = HANGING_FORWARD.format(num_good=num_good)
    command = [sys.executable, "-c", script, "serve", "--port", str(port), *flags]
    with forked(command, env=environment(**models), stderr=subprocess.PIPE) as process:
        yield process


def test_a_first_forward_that_never_returns_does_not_keep_the_process(tmp_path: Path) -> None:
    port = free_port()
    with hanging_forward(make_model(tmp_path), 0, port) as process:
        wait_until_loading(process, port)
        wait_until_it_hangs(process)
        assert seconds_to_end(process, signal.SIGTERM) < SOON
        assert process.returncode == 0


def test_a_forward_that_never_returns_is_given_up_when_the_grace_period_ends(tmp_path: Path) -> None:
    port = free_port()
    with hanging_forward(make_model(tmp_path), 1, port, "--grace-seconds", "4") as process:
        url = url_from(process)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx.post, f"{url}/score", json={"items": [TEA]}, timeout=60, trust_env=False)
            wait_until_it_hangs(process)
            read_on(process)
            assert 2 < seconds_to_end(process, signal.SIGTERM) < SOON
            assert process.returncode == 0
            assert_error(asked.result(timeout=10), 503, "shutting_down")


def test_a_second_interrupt_ends_the_process_though_a_request_is_in_flight(tmp_path: Path) -> None:
    models = {"REWARD_SAFETY_MODEL": "", "REWARD_HELPFULNESS_MODEL": str(make_model(tmp_path))}
    with forked(SERVE, env=environment(**models), stderr=subprocess.PIPE) as process:
        url = httpx.URL(url_from(process))
        read_on(process)
        with socket.create_connection((url.host, url.port or 0)) as connection:
            connection.sendall(
                b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
                b"Expect: 100-continue\r\n\r\n"
            )
            assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")  # it waits for the body, which never comes
            process.send_signal(signal.SIGINT)
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                while client.get("/ready").json().get("status") == "ready":
                    time.sleep(0.01)  # two signals at once are one
            assert seconds_to_end(process, signal.SIGINT) < SOON
            assert process.returncode == 130
