"""POST /admin/reload: new weights without downtime, and the old ones for as long as the new ones will not do."""

import asyncio
import json
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from app.engine import num_threads
from app.engine.reward_model import RewardModel
from app.main import create_app
from app.service import Service
from app.settings import Settings
from tests.api.asking import LOCK, TEA, ask, assert_error
from tests.checkpoints.test_loading import nan_weight, no_head, only_bin, two_labels
from tests.conftest import Serve
from tests.models import make_model

KEY = {"authorization": "Bearer operator"}
WEIGHTS = "model.safetensors"
ITEMS = [TEA, LOCK]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", seed=21)


@pytest.fixture
def server(serve: Serve, directory: Path) -> Iterator[httpx.Client]:
    """Serves the directory's checkpoint as its one model, to a client that has the key."""
    with serve(safety_model="", helpfulness_model=str(directory), api_keys=("operator",)) as client:
        client.headers.update(KEY)
        yield client


def scores(client: httpx.Client) -> tuple[float, ...]:
    results = ask(client, "/score", {"items": ITEMS})["results"]
    return tuple(result["scores"]["helpfulness"]["score"] for result in results)


def version(client: httpx.Client) -> str:
    return str(client.get("/info").json()["models"]["helpfulness"]["version"])


def retired(client: httpx.Client) -> None:
    """Returns when the models before the last reload are given up."""
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    task = service._retirement
    assert task is not None
    done = threading.Event()
    task.get_loop().call_soon_threadsafe(lambda: task.add_done_callback(lambda _: done.set()))
    assert done.wait(timeout=60)


def reload(client: httpx.Client) -> dict[str, Any]:
    response = client.post("/admin/reload")
    assert response.status_code == 200, response.text
    retired(client)
    answer: dict[str, Any] = response.json()
    return answer


def test_a_reload_serves_the_new_weights_and_says_which(server: httpx.Client, directory: Path, serve: Serve) -> None:
    before, old = scores(server), version(server)
    make_model(directory, seed=22)
    answer = reload(server)
    assert answer == {"models": {"helpfulness": {"version": version(server), "previous_version": old}}}
    assert version(server) != old
    after = scores(server)
    assert all(a != b for a, b in zip(before, after, strict=True))
    with serve(safety_model="", helpfulness_model=str(directory)) as fresh:
        assert scores(fresh) == after


def test_under_load_no_request_fails_and_each_is_answered_wholly_by_one_version(
    server: httpx.Client, directory: Path
) -> None:
    by_version = {}
    for seed in (22, 21):
        make_model(directory, seed=seed)
        reload(server)
        by_version[seed] = scores(server)
    stop = threading.Event()

    def ask_on() -> set[tuple[float, ...]]:
        seen = set()
        while not stop.is_set():
            seen.add(scores(server))
        return seen

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_on) for _ in range(4)]
        try:
            for seed in (22, 21, 22):
                make_model(directory, seed=seed)
                reload(server)
        finally:
            stop.set()
        seen = set().union(*(each.result(timeout=60) for each in asking))
    assert seen == set(by_version.values())
    assert scores(server) == by_version[22]


def of_another_size(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": 10**9, "hidden_size": 4096}))


def cut_short(directory: Path) -> None:
    whole = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def vanished(directory: Path) -> None:
    (directory / WEIGHTS).unlink()


REFUSALS: dict[Callable[[Path], object], str] = {
    of_another_size: "where its config asks for",
    cut_short: "cannot be loaded",
    vanished: "cannot be loaded",
    nan_weight: "NaN or infinite weights",
    no_head: "lacks weights (score.weight)",
    only_bin: "reward-service convert",
    two_labels: "num_labels 2",
}


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda spoil: spoil.__name__)
def test_a_checkpoint_that_will_not_do_is_refused_and_the_old_one_stays(
    server: httpx.Client, directory: Path, spoil: Callable[[Path], object]
) -> None:
    before, old = scores(server), version(server)
    spoil(directory)
    refused = server.post("/admin/reload")
    assert_error(refused, 422, "reload_refused", says=REFUSALS[spoil])
    assert refused.json()["error"]["message"].endswith("the models that were loaded before stay")
    assert (scores(server), version(server)) == (before, old)
    assert server.get("/health").status_code == server.get("/ready").status_code == 200
    make_model(directory, seed=22)
    reload(server)
    assert version(server) != old


def test_a_checkpoint_that_changes_while_it_is_read_is_refused(server: httpx.Client, directory: Path) -> None:
    stop = threading.Event()

    def keep_writing() -> None:
        nanoseconds = 0
        while not stop.is_set():
            nanoseconds += 1_000_000
            os.utime(directory / WEIGHTS, ns=(nanoseconds, nanoseconds))

    before = scores(server)
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(keep_writing)
        try:
            refused = server.post("/admin/reload")
        finally:
            stop.set()
        writer.result(timeout=60)
    assert_error(refused, 422, "reload_refused", says="changed")
    assert scores(server) == before


@contextmanager
def in_one_loop(directory: Path, **settings: Any) -> Iterator[tuple[asyncio.Runner, Service, httpx.AsyncClient]]:
    app = create_app(Settings(_env_file=None, safety_model="", helpfulness_model=str(directory), **settings))
    service: Service = app.state.service
    with asyncio.Runner() as runner:
        runner.run(service.load())
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=KEY)
        yield runner, service, client
        runner.run(client.aclose())
        runner.run(service.close())


def test_the_second_of_two_reloads_at_once_is_refused(directory: Path) -> None:
    async def both(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        return await asyncio.gather(client.post("/admin/reload"), client.post("/admin/reload"))

    with in_one_loop(directory, api_keys=("operator",)) as (runner, _, client):
        done, refused = sorted(runner.run(both(client)), key=lambda answer: answer.status_code)
    assert done.status_code == 200
    assert_error(refused, 409, "reload_in_progress", says="retry later")


def test_what_was_accepted_before_is_answered_by_the_old_weights(directory: Path) -> None:
    body = {"items": ITEMS}

    async def around(service: Service, client: httpx.AsyncClient) -> list[httpx.Response]:
        alone = await client.post("/score", json=body)
        release, device = threading.Event(), next(iter(service.ready_engine().devices.values()))
        model = device.models["helpfulness"]

        class Held:
            """Computes when it is told to."""

            def __getattr__(self, name: str) -> Any:
                return getattr(model, name)

            def score(self, *args: Any) -> Any:
                assert release.wait(timeout=60)
                return model.score(*args)

        device.models["helpfulness"] = Held()
        queued = [asyncio.create_task(client.post("/score", json=body)) for _ in range(3)]
        while len(service.ready_engine()._live) < 3:  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0)
        make_model(directory, seed=22)
        assert (await client.post("/admin/reload")).status_code == 200
        assert (await client.post("/admin/reload")).status_code == 409  # the old models still answer
        by_new = await client.post("/score", json=body)
        assert not any(task.done() for task in queued)
        release.set()
        return [alone, by_new, *await asyncio.gather(*queued)]

    with in_one_loop(directory, api_keys=("operator",)) as (runner, service, client):
        alone, by_new, *queued = [answer.json()["results"] for answer in runner.run(around(service, client))]
    assert queued == [alone] * 3
    assert by_new != alone


def test_the_models_before_a_reload_leave_memory_with_their_prefix_caches(directory: Path) -> None:
    async def reload_and_wait(service: Service) -> bool:
        model = service.ready_engine().models["helpfulness"]
        assert model.cache is not None
        old = [weakref.ref(model.net), weakref.ref(model.cache), weakref.ref(model.cache._pool)]
        del model
        await service.reload()
        assert service._retirement is not None
        await service._retirement
        return all(each() is None for each in old)

    with in_one_loop(directory) as (runner, service, _):
        assert [runner.run(reload_and_wait(service)) for _ in range(3)] == [True] * 3


def test_a_reload_beside_a_forward_on_one_thread_does_not_take_that_for_the_number(
    serve: Serve, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, before, seen = Service._load, torch.get_num_threads(), list[int]()

    def load_while_a_forward_begins(service: Service) -> dict[str, RewardModel]:
        models = load(service)
        torch.set_num_threads(1)  # as for a small one; a thread that begins now finds this
        return models

    monkeypatch.setattr(num_threads, "affinity", lambda: frozenset(range(4)))
    try:
        torch.set_num_threads(3)
        with serve(safety_model="", helpfulness_model=str(directory), api_keys=("operator",)) as client:
            client.headers.update(KEY)
            monkeypatch.setattr(Service, "_load", load_while_a_forward_begins)
            reload(client)
            service: Service = client.app.state.service  # type: ignore[attr-defined]
            model = service.ready_engine().models["helpfulness"]
            score = model.score

            def score_and_look(*given: Any) -> Any:
                seen.append(torch.get_num_threads())
                return score(*given)

            monkeypatch.setattr(model, "score", score_and_look)
            scores(client)
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {3}


def test_a_reload_gives_a_service_whose_model_thread_died_a_new_one(directory: Path) -> None:
    async def die_and_reload(service: Service, client: httpx.AsyncClient) -> list[int]:
        for device in service.ready_engine().devices.values():
            device.stop()
            await asyncio.to_thread(device.join)
        return [
            (await client.get("/health")).status_code,
            (await client.post("/score", json={"items": ITEMS})).status_code,
            (await client.post("/admin/reload")).status_code,
            (await client.get("/health")).status_code,
            (await client.post("/score", json={"items": ITEMS})).status_code,
        ]

    with in_one_loop(directory, api_keys=("operator",)) as (runner, service, client):
        assert runner.run(die_and_reload(service, client)) == [503, 500, 200, 200, 200]


def test_without_a_configured_key_nobody_may_reload(client: httpx.Client) -> None:
    refused = client.post("/admin/reload", headers=KEY)
    assert_error(refused, 403, "forbidden", says="REWARD_API_KEYS")


def test_a_reload_asks_for_the_key_and_takes_nothing_else(server: httpx.Client) -> None:
    assert_error(server.post("/admin/reload", headers={"authorization": "Bearer wrong"}), 401, "unauthorized")
    assert_error(
        server.post("/admin/reload", json={"path": "/etc"}), 422, "invalid_input", says="the request has a body"
    )
    refused = server.get("/admin/reload")
    assert_error(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "POST"


def test_a_file_that_is_written_over_in_place_changes_nothing_that_is_loaded(
    server: httpx.Client, directory: Path
) -> None:
    before = scores(server)
    size = (directory / WEIGHTS).stat().st_size
    with (directory / WEIGHTS).open("r+b") as file:
        file.write(b"\x00" * size)
    assert scores(server) == before
    with (directory / WEIGHTS).open("r+b") as file:
        file.truncate(0)
    assert scores(server) == before
    assert_error(server.post("/admin/reload"), 422, "reload_refused")
    assert scores(server) == before


def test_a_reload_goes_on_where_its_client_leaves_and_is_no_request_in_flight(
    server: httpx.Client, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service: Service = server.app.state.service  # type: ignore[attr-defined]
    begun, released, ended = threading.Event(), threading.Event(), threading.Event()
    load, end, old = service._load, service._reload_ended, version(server)

    def load_late() -> dict[str, RewardModel]:
        begun.set()
        assert released.wait(60)
        return load()

    def note_end(task: asyncio.Task[None]) -> None:
        end(task)
        ended.set()

    monkeypatch.setattr(service, "_load", load_late)
    monkeypatch.setattr(service, "_reload_ended", note_end)
    make_model(directory, seed=22)
    with caplog.at_level(logging.INFO, logger="app.service"):
        with socket.create_connection((server.base_url.host, server.base_url.port or 0)) as connection:
            lines = ["POST /admin/reload HTTP/1.1", "Host: localhost", f"Authorization: {KEY['authorization']}"]
            connection.sendall("\r\n".join([*lines, "Content-Length: 0", "", ""]).encode())
            assert begun.wait(60)
            assert service.num_in_flight == 1
        wait_until(lambda: service.num_in_flight == 0)
        assert server.post("/admin/reload").status_code == 409  # it is under way
        ended.clear()  # of the refused one
        released.set()
        assert ended.wait(60)
    retired(server)
    assert version(server) != old
    assert "the models were reloaded" in caplog.text


def wait_until(condition: Callable[[], bool]) -> None:
    """For a state of the service of which it tells nobody."""
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)
