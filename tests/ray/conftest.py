"""A Ray cluster on this machine, and the service on it in place of the one in this process.

For `make ray-test`: a cluster is a dozen processes and minutes.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.compat.conftest import hurried, only_helpfulness, tokenizer
from tests.conftest import Serve
from tests.processes import free_port

__all__ = ["hurried", "only_helpfulness", "tokenizer"]

HERE = Path(__file__).resolve().parent
OBJECT_STORE_BYTES = 200 * 2**20


def pytest_collectstart() -> None:
    with warnings.catch_warnings(action="ignore"):
        import ray.serve  # noqa: F401 - first here, where its own code's warnings are no errors


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings are errors but for those of Ray's own code, which is run in this process to start a cluster."""
    for item in items:
        if HERE in item.path.resolve().parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


@dataclass(frozen=True)
class Cluster:
    """Where its proxy listens."""

    port: int

    def url(self, prefix: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{prefix}"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    directory = tempfile.mkdtemp(prefix="ray-")  # short: the paths of unix sockets go below it
    try:
        ray.init(
            num_cpus=32,  # to be shared out, not to be had: a replica takes one
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=directory,
            log_to_driver=False,
            logging_level="ERROR",
        )
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "WARNING"})
        yield Cluster(port)
    finally:
        if ray.is_initialized():
            serve.shutdown()
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def serve(cluster: Cluster, safety_dir: Path, helpfulness_dir: Path) -> Serve:
    """As the fixture of this name in the suite: a service with the settings given; a client of it as long as it runs."""
    numbers = count()

    @contextmanager
    def start(*, replica: type | None = None, **settings: Any) -> Iterator[httpx.Client]:
        from ray import serve

        from app.ray_serve import app, application

        name = f"service-{next(numbers)}"
        models = {"safety_model": str(safety_dir), "helpfulness_model": str(helpfulness_dir)}
        args = models | settings
        serve.run(application(args, replica) if replica else app(args), name=name, route_prefix=f"/{name}")
        try:
            with httpx.Client(base_url=cluster.url(f"/{name}"), timeout=120, trust_env=False) as client:
                yield client
        finally:
            serve.delete(name)

    return start


@pytest.fixture(scope="session")
def client(serve: Serve) -> Iterator[httpx.Client]:
    with serve() as client:
        yield client
