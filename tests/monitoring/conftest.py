"""A real Prometheus with the rules of deploy/, scraping a real service that has answered known requests."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.api.asking import LOCK, TEA, ask
from tests.conftest import Serve
from tests.processes import free_port, running

if TYPE_CHECKING:
    import subprocess

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
KEY = "scrape-key-of-the-test"
SCRAPE_SECONDS = 1
NUM_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of the service, by what it answered."""

    results: list[dict[str, Any]]
    num_tokens: int
    num_computed_tokens: int
    num_invalid: int


@dataclass(frozen=True, slots=True)
class Prometheus:
    url: str

    def get(self, path: str, **query: str | float) -> Any:
        response = httpx.get(f"{self.url}/api/v1/{path}", params=query, trust_env=False)
        answer = response.json()
        assert answer["status"] == "success", f"{query}: {answer}"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def number(self, expression: str) -> float:
        (only,) = self.query(expression)
        return float(only["value"][1])


def program(name: str) -> str:
    """A test of Prometheus without Prometheus would show nothing, so a missing program is a failure."""
    found = shutil.which(name)
    assert found is not None, (
        f"{name} is not installed; on Debian: apt-get install prometheus nginx-light caddy openssl"
    )
    return found


@pytest.fixture(scope="session")
def service(serve: Serve) -> Iterator[httpx.Client]:
    with serve(api_keys=(KEY,)) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        yield client


@pytest.fixture(scope="session")
def prometheus(service: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """With the configuration of deploy/, but for the address of the target, the key, and how often it looks."""
    directory = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [service.base_url.netloc.decode()]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (directory / "scrape-key").write_text(KEY, encoding="utf-8")
    shutil.copy(DEPLOY / "prometheus/alerts.yml", directory)
    port = free_port()
    command = [
        program("prometheus"),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "log").open("w") as log, running(command, stderr=log) as process:
        server = Prometheus(f"http://127.0.0.1:{port}")
        wait_until_scraped(server, process, directory / "log")
        yield server


def wait_until_scraped(server: Prometheus, process: "subprocess.Popen[str]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            ready = httpx.get(f"{server.url}/-/ready", trust_env=False)
            if ready.is_success and server.query("reward_ready == 1"):
                return
        except httpx.TransportError:
            pass  # it is starting
        time.sleep(0.2)  # another program's clock
    raise AssertionError(log.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def asked(service: httpx.Client, prometheus: Prometheus) -> Asked:
    """Known traffic over a dozen scrapes, of which Prometheus has seen the last."""
    results: list[dict[str, Any]] = []
    usage = {"num_tokens": 0, "num_computed_tokens": 0}
    for n in range(NUM_ROUNDS):
        items = [TEA, TEA, LOCK, {"text": f"{n} " * 700}]
        answer = ask(service, "/score", {"items": items, "truncation": "left"})
        results += answer["results"]
        for name in usage:
            usage[name] += answer["usage"][name]
        assert service.post("/score", json={"items": []}).status_code == 422
        assert service.get("/nowhere").status_code == 404
        wait_for_scrapes(prometheus, 1)
    wait_for_scrapes(prometheus, 3)
    return Asked(results, **usage, num_invalid=NUM_ROUNDS)


def wait_for_scrapes(prometheus: Prometheus, count: int) -> None:
    """Until so many scrapes that began after now have ended."""
    now = time.time()
    while True:
        times = prometheus.get("query", query="timestamp(reward_ready)")["result"]
        if times and float(times[0]["value"][1]) > now + (count - 1) * SCRAPE_SECONDS:
            return
        time.sleep(0.1)  # another program's clock


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/reward-service.json").read_text("utf-8"))
    return content
