import asyncio
from pathlib import Path

import httpx
import pytest

from app import __version__
from app.errors import ShuttingDownError
from app.main import create_app
from app.settings import Settings
from tests.api.asking import assert_error


def test_a_running_service_is_healthy_and_ready(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready", "models": ["safety", "helpfulness"]}


def test_info_names_the_models_the_limits_and_the_version(client: httpx.Client, safety_dir: Path) -> None:
    info = client.get("/info").json()
    assert info["version"] == __version__
    assert list(info["models"]) == ["safety", "helpfulness"]
    safety = info["models"]["safety"]
    assert safety["model_id"] == str(safety_dir)
    assert safety["version"].startswith("sha256:")
    assert safety["version"] != info["models"]["helpfulness"]["version"]
    assert (safety["dtype"], safety["device"], safety["max_length"]) == ("float32", "cpu", 512)
    assert safety["architecture"] == "LlamaForSequenceClassification"
    assert safety["path"] in {"packed", "padded", "single"}
    assert safety["path_reason"]
    assert isinstance(safety["batch_invariant"], bool)
    assert safety["has_chat_template"] is True
    assert info["limits"]["max_items"] == 1024
    assert info["limits"]["deadline_seconds"] == 110
    assert (info["safety_threshold"], info["beta"]) == (0.15, 0.01)
    assert info["cpu_threads"]["limit"] == safety["cpu_thread_counts"][0]
    assert info["cpu_threads"]["reason"]


def test_info_has_the_keys_that_clients_of_text_embeddings_inference_read(client: httpx.Client) -> None:
    keys = {
        "model_id",
        "model_sha",
        "model_dtype",
        "model_type",
        "max_concurrent_requests",
        "max_input_length",
        "max_batch_tokens",
        "max_batch_requests",
        "max_client_batch_size",
        "auto_truncate",
        "tokenization_workers",
        "version",
        "sha",
        "docker_label",
    }
    assert keys <= set(client.get("/info").json())


def test_the_docs_page_is_served(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "openapi.json" in page.text


async def get(path: str, *, draining: bool) -> httpx.Response:
    app = create_app(Settings(_env_file=None))
    app.state.service.draining = draining
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)


@pytest.mark.parametrize("path", ["/ready", "/info"])
def test_a_service_without_models_yet_is_not_ready(path: str) -> None:
    assert_error(asyncio.run(get(path, draining=False)), 503, "not_ready")


def test_a_service_without_models_yet_is_healthy() -> None:
    response = asyncio.run(get("/health", draining=False))
    assert (response.status_code, response.json()) == (200, {"status": "loading"})


def test_a_draining_service_is_healthy_and_not_ready() -> None:
    assert_error(asyncio.run(get("/ready", draining=True)), 503, "shutting_down")
    assert asyncio.run(get("/health", draining=True)).status_code == 200


class DeadEngine:
    is_alive = False


async def health_of_the_dead() -> httpx.Response:
    app = create_app(Settings(_env_file=None))
    app.state.service.engine = DeadEngine()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get("/health")


def test_a_service_whose_model_thread_died_is_not_healthy() -> None:
    assert_error(asyncio.run(health_of_the_dead()), 503, "not_ready", says="restart")


def test_draining_refuses_at_the_door_and_nothing_that_was_let_in(client: httpx.Client) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    service.draining = True
    try:
        with pytest.raises(ShuttingDownError):
            service.accept()
        assert service.require_models(None, "selecting") == ("safety", "helpfulness")
    finally:
        service.draining = False
