"""A GPU that answers nothing any more after a fault: `/health` says so, that the process be restarted. The fault is injected."""

from typing import Any

import httpx
import pytest
import torch

from app.engine import threads
from app.engine.devices import is_lost
from tests.api.asking import TEA
from tests.conftest import Serve

ILLEGAL = "CUDA error: an illegal memory access was encountered"


def test_a_device_is_lost_where_the_smallest_computation_fails() -> None:
    assert is_lost(torch.device("meta"))  # holds no numbers, and so computes none
    assert not is_lost(torch.device("cpu"))


def failing(monkeypatch: pytest.MonkeyPatch, client: httpx.Client) -> Any:
    """The engine, whose models raise as torch does once the GPU has failed."""
    engine = client.app.state.service.ready_engine()  # type: ignore[attr-defined]

    def fail(_batch: Any) -> Any:
        raise RuntimeError(ILLEGAL)

    for model in engine.models.values():
        monkeypatch.setattr(model, "score", fail)
    return engine


def score(client: httpx.Client) -> httpx.Response:
    return client.post("/score", json={"items": [TEA]})


def test_after_a_fault_that_no_batch_survives_the_service_is_neither_healthy_nor_ready(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve() as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        engine = failing(monkeypatch, client)
        monkeypatch.setattr(threads, "is_lost", lambda _device: True)
        first = score(client)
        assert (first.status_code, first.json()["error"]["code"]) == (500, "inference_failed")
        for thread in engine.devices.values():
            thread.join(30)
        for path in ("/health", "/ready"):
            response = client.get(path)
            assert response.status_code == 503, path
            assert "restart" in response.json()["error"]["message"]
        assert score(client).status_code == 500
        assert "reward_healthy 0.0" in client.get("/metrics").text
    assert ILLEGAL in caplog.text


def test_after_a_fault_that_the_device_survives_the_service_stays_healthy(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as client:
        with monkeypatch.context() as patch:
            failing(patch, client)
            response = score(client)
            assert (response.status_code, ILLEGAL in response.text) == (500, True)
        assert client.get("/health").status_code == 200
        assert score(client).status_code == 200
