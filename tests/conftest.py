"""Tiny models and a running server, made once a session."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else torch's idle threads spin on the cores that other tests need
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before tokenizers starts threads that fork would lose
os.environ.setdefault(
    "REWARD_PREFIX_CACHE_MB", "32"
)  # by default a tenth of the free memory, for each of dozens of services

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.extras import lacking
from tests.forked import forked
from tests.processes import running

TESTS = Path(__file__).parent
SUITES_OF_THEIR_OWN = {
    "flex": "make flex-test",
    "fuzz": "make fuzz",
    "monitoring": "make monitoring-test",
    "ray": "make ray-test",
    "trainers": "make trainers",
    "ui": "make ui-test",
}
"""Folders with a make target each, which installs what they need; the plain suite leaves them out."""
EXTRAS = {"fuzz": ("fuzz",), "ray": ("ray",), "trainers": ("trainers",), "ui/browser": ("ui", "browser")}
"""By folder, what must be installed where its tests are asked for."""
SERVER_FIXTURES = {"client", "serve"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves a suite of its own out unless it is named on the command line."""
    if collection_path.parent != TESTS or collection_path.name not in SUITES_OF_THEIR_OWN:
        return None
    return None if any(collection_path in {path, *path.parents} for path in named(config)) else True


def pytest_sessionstart(session: pytest.Session) -> None:
    """A suite that was asked for fails where its packages are missing: no test of it would run, and nobody would know."""
    for folder, extras in EXTRAS.items():
        suite, place = folder.partition("/")[0], TESTS / folder
        asked = [path for path in named(session.config) if TESTS / suite in {path, *path.parents}]
        if any(place in {path, *path.parents} or path in place.parents for path in asked):
            missing = [requirement for extra in extras for requirement in lacking(extra)]
            if missing:
                raise pytest.UsageError(
                    f"tests/{folder} needs {', '.join(missing)}; `{SUITES_OF_THEIR_OWN[suite]}` installs what it needs"
                )


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Before the first test module is imported. Where worker processes run the tests, the process that distributes them
    imports no torch, which is seconds before the workers start. What is imported and collected stays, so that looking for
    garbage in it is in vain, now and later.
    """
    gc.disable()
    if not session.config.getoption("numprocesses", None):
        import torch

        from app.engine.process import prepare_process

        prepare_process()
        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


SWEEPS = frozenset(
    TESTS / path
    for path in (
        "checkpoints/test_adapters.py",
        "checkpoints/test_early.py",
        "checkpoints/test_encoder_decoders.py",
        "checkpoints/test_placement.py",
        "checkpoints/test_prepacking.py",
        "checkpoints/test_sharing.py",
        "checkpoints/test_trunk_table.py",
        "checkpoints/test_trunks.py",
        "engine/test_cached_scores.py",
        "engine/test_cached_traffic.py",
        "engine/test_families.py",
        "engine/test_first_layers.py",
        "engine/test_mask_test.py",
        "engine/test_paths.py",
        "engine/test_scores.py",
        "families/test_broken.py",
        "families/test_scores.py",
    )
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `make quick` leaves out: `server`, tests of a running server or process; `trained`, tests that train; `sweep`,
    tests over many models or random batches.
    """
    for item in items:
        module = getattr(item, "module", None)
        starts_processes = any(getattr(module, each.__name__, None) is each for each in (forked, running))
        if SERVER_FIXTURES & set(getattr(item, "fixturenames", ())) or starts_processes:
            item.add_marker("server")
        if item.path in SWEEPS:
            item.add_marker("sweep")
        if {"training", "recipe"} & set(item.path.relative_to(TESTS).parts):
            item.add_marker("trained")


def named(config: pytest.Config) -> list[Path]:
    """The files and folders of the command line."""
    return [Path(argument.partition("::")[0]).resolve() for argument in config.args]


Serve = Callable[..., AbstractContextManager[httpx.Client]]


@pytest.fixture(scope="session")
def safety_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models import make_model

    return make_model(tmp_path_factory.mktemp("safety"), seed=1)


@pytest.fixture(scope="session")
def helpfulness_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models import make_model

    return make_model(tmp_path_factory.mktemp("helpfulness"), seed=2)


@pytest.fixture(scope="session")
def serve(safety_dir: Path, helpfulness_dir: Path) -> Serve:
    """Starts a server on a free port with the tiny models and the settings given; a client of it as long as it runs."""
    from app.http.server import Server, config_of
    from app.main import create_app
    from app.settings import Settings

    @contextmanager
    def start(**settings: Any) -> Iterator[httpx.Client]:
        defaults: dict[str, Any] = {"safety_model": str(safety_dir), "helpfulness_model": str(helpfulness_dir)}
        app = create_app(Settings(_env_file=None, **defaults | settings))
        server = Server(config_of(app, port=0), app.state.service)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not (server.started and app.state.service.engine) and thread.is_alive():
                if app.state.service.start_error is not None:
                    raise app.state.service.start_error
                time.sleep(0.01)  # the server says so nowhere but in its own state
            port = server.servers[0].sockets[0].getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
                client.app = app  # type: ignore[attr-defined]
                yield client
        finally:
            server.should_exit = True
            thread.join()

    return start


@pytest.fixture(scope="session")
def client(serve: Serve) -> Iterator[httpx.Client]:
    with serve() as client:
        yield client
