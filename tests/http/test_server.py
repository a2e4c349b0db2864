"""The process: how it starts, how a start fails, how it ends."""

import asyncio
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from app.cli import main
from app.engine.requests import ItemScore, Scores
from app.errors import ShuttingDownError
from app.http.server import Server, address, listener, ready_line
from app.main import create_app
from app.service import Service
from app.settings import Settings
from tests.api.asking import TEA, assert_error
from tests.checkpoints.test_loading import causal, nan_weight, no_head, only_bin, two_labels
from tests.models import make_model
from tests.processes import SERVE, environment, running, url_from

REFUSED = {
    "random head": (no_head, "lacks weights (score.weight)"),
    "two labels": (two_labels, "num_labels 2"),
    "nan weights": (nan_weight, "NaN or infinite weights"),
    "language model": (causal, "reward-service init"),
    "no safetensors": (only_bin, "reward-service convert"),
}


def test_the_start_prints_the_addresses_of_api_docs_and_playground() -> None:
    url = "http://127.0.0.1:8000"
    assert ready_line(url, has_page=True) == f"ready on {url}, docs: {url}/docs, playground: {url}/ui"
    assert ready_line(url, has_page=False) == f"ready on {url}, docs: {url}/docs, playground: off (--ui true)"


@pytest.mark.parametrize("reason", REFUSED)
def test_a_model_that_is_refused_ends_the_start_with_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], reason: str
) -> None:
    spoil, says = REFUSED[reason]
    directory = make_model(tmp_path)
    spoil(directory)
    capfd.readouterr()
    assert main(["serve", "--port", "0", "--safety-model", str(directory), "--helpfulness-model", ""]) == 1
    assert_one_line(capfd.readouterr().err, says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--safety-model", "no/such/place"], "no safety model at"),
        (["--helpfulness-model", "gpt2"], "no helpfulness model at"),
        (["--safety-device", "cuda:77"], "device 'cuda:77' cannot be used"),
        (["--max-items", "0"], "--max-items '0'"),
        (["--num-threads", "100000"], "--num-threads '100000': this machine has"),
        (["--num-threads", "all"], "--num-threads 'all': "),
        (["--api-keys", ""], "--api-keys: "),
    ],
)
def test_a_setting_that_is_wrong_ends_the_start_with_one_line(
    safety_dir: Path, capfd: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    capfd.readouterr()
    models = ["--safety-model", str(safety_dir), "--helpfulness-model", str(safety_dir)]
    assert main(["serve", "--port", "0", *models, *flags]) == 1
    assert_one_line(capfd.readouterr().err, says)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6 sockets that take IPv4 too")
def test_the_address_of_all_ipv6_interfaces_takes_ipv4_too() -> None:
    with listener(Settings(_env_file=None, host="::", port=0), 1) as listening:
        port = listening.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()


def test_a_port_that_is_taken_ends_the_start_with_one_line(safety_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        capfd.readouterr()
        assert main(["serve", "--port", port, "--safety-model", str(safety_dir), "--helpfulness-model", ""]) == 1
    assert_one_line(capfd.readouterr().err, f"cannot listen on 127.0.0.1 port {port} (Address already in use")


def assert_one_line(said: str, says: str) -> None:
    assert said.startswith("reward-service: "), said
    assert said.count("\n") == 1, said
    assert says in said, said


def test_a_hub_id_that_cannot_be_reached_ends_the_process_with_one_line(tmp_path: Path) -> None:
    models = ["--safety-model", "hf:org/name", "--helpfulness-model", ""]
    with running([*SERVE, *models], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert_one_line(said, "hf:org/name cannot be loaded")


def test_sigterm_under_load_answers_what_was_accepted_and_exits_zero(
    tmp_path: Path, safety_dir: Path, helpfulness_dir: Path
) -> None:
    models = {"REWARD_SAFETY_MODEL": str(safety_dir), "REWARD_HELPFULNESS_MODEL": str(helpfulness_dir)}
    body = {"items": [{"text": f"{n} " * 100} for n in range(16)]}
    with running(SERVE, cwd=tmp_path, env=environment(**models), stderr=subprocess.PIPE) as process:
        url = url_from(process)
        answers: list[httpx.Response] = []
        signalled = threading.Event()

        def ask_until_refused(client: httpx.Client) -> None:
            while not answers or answers[-1].status_code == 200:
                try:
                    answers.append(client.post("/score", json=body))
                except httpx.TransportError:  # the listener is gone, as it may be once the signal was sent
                    assert signalled.is_set()
                    return
                if len(answers) >= 6 and not signalled.is_set():
                    signalled.set()
                    process.send_signal(signal.SIGTERM)

        with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            for worker in [pool.submit(ask_until_refused, client) for _ in range(4)]:
                worker.result(timeout=90)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 0, rest
    assert "Traceback" not in rest
    assert signalled.is_set()
    for answer in answers:
        if answer.status_code == 200:
            assert len(answer.json()["results"]) == 16
        else:
            assert_error(answer, 503, "shutting_down")


class HeldEngine:
    """An engine that answers when it is told to, and refuses what is left when it is closed."""

    is_alive = True

    def __init__(self) -> None:
        self.models = {"safety": None, "helpfulness": None}
        self.entered = threading.Event()
        self.cancelled = threading.Event()
        self.released = asyncio.Event()
        self.refused = False

    async def score(self, inputs: list[Any], **_: object) -> Scores:
        self.entered.set()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.refused:
            raise ShuttingDownError("the service is shutting down; retry elsewhere")
        answer = ItemScore(1.5, 3, truncated=False, token_scores=None)
        return Scores([{"safety": answer, "helpfulness": answer} for _ in inputs], 6, 6)

    def reject_all(self) -> None:
        self.refused = True
        self.released.set()

    def close(self) -> None:
        pass


class TickingServer(Server):
    """Says when it has looked at its own state."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config, service)
        self.num_ticks = 0
        self.ticked = threading.Condition()

    async def on_tick(self, counter: int) -> bool:
        ends = await super().on_tick(counter)
        with self.ticked:
            self.num_ticks += 1
            self.ticked.notify_all()
        return ends

    def wait_for_a_tick(self) -> None:
        """Returns after a tick that began after the call."""
        with self.ticked:
            seen = self.num_ticks
            assert self.ticked.wait_for(lambda: self.num_ticks >= seen + 2, timeout=30)


@contextmanager
def held_server(**settings: float) -> Iterator[tuple[TickingServer, HeldEngine, str]]:
    """A server in a thread, whose engine is held; stopped by `handle_exit`, as by SIGTERM."""
    app = create_app(Settings.model_validate(settings))
    service, engine = app.state.service, HeldEngine()

    async def load() -> None:
        service.engine = engine

    service.load = load
    server = TickingServer(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2), service)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        server.wait_for_a_tick()
        yield server, engine, address(server)
    finally:
        server.should_exit = True
        thread.join()


def test_a_draining_server_answers_what_it_accepted_and_refuses_the_rest() -> None:
    with held_server() as (server, engine, url), ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(httpx.post, f"{url}/score", json={"items": [TEA]}, timeout=30, trust_env=False)
        assert engine.entered.wait(timeout=30)
        server.handle_exit(signal.SIGTERM, None)
        server.wait_for_a_tick()
        assert not server.should_exit
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            refused = client.post("/score", json={"items": [TEA]})
            assert_error(refused, 503, "shutting_down")
            assert refused.headers["retry-after"] == "5"
            assert_error(client.get("/ready"), 503, "shutting_down")
            assert client.get("/health").status_code == 200
        server_loop(server).call_soon_threadsafe(engine.released.set)
        answer = accepted.result(timeout=30)
        assert answer.status_code == 200
        assert answer.json()["results"][0]["scores"]["safety"]["score"] == 1.5


def server_loop(server: Server) -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = server.servers[0].get_loop()
    return loop


@pytest.mark.parametrize("path", ["/score", "/ppo-reward"])
def test_a_client_that_leaves_takes_its_request_with_it(path: str) -> None:
    body = json.dumps({"items": [TEA, TEA]}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with held_server() as (server, engine, url):
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)) as connection:
            connection.sendall(head.encode() + body)
            assert engine.entered.wait(timeout=30)
            assert server.service.num_in_flight == 1
        assert engine.cancelled.wait(timeout=30)
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200


def test_what_is_not_answered_within_the_grace_period_is_refused() -> None:
    with held_server(grace_seconds=0) as (server, engine, url), ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(httpx.post, f"{url}/score", json={"items": [TEA]}, timeout=30, trust_env=False)
        assert engine.entered.wait(timeout=30)
        server.handle_exit(signal.SIGTERM, None)
        assert_error(accepted.result(timeout=30), 503, "shutting_down")


def test_a_second_interrupt_ends_at_once_and_a_second_sigterm_does_not() -> None:
    app = create_app(Settings.model_validate({}))
    server = Server(uvicorn.Config(app), app.state.service)
    for expected, received in ((False, signal.SIGTERM), (False, signal.SIGTERM), (True, signal.SIGINT)):
        server.handle_exit(received, None)
        assert app.state.service.draining
        assert server.should_exit is server.force_exit is expected
