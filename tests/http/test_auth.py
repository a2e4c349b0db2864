import asyncio
import base64

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.api.asking import TEA, assert_error

KEYS = "first-key,geheim-schlüssel"
PATHS = ["/score", "/compare", "/ppo-reward"]


async def ask(method: str, path: str, header: bytes | None, keys: str | None = KEYS) -> httpx.Response:
    """The answer of a service that still loads: 503 to whom it knows, 401 to others."""
    app = create_app(Settings(_env_file=None, api_keys=keys) if keys else Settings(_env_file=None))
    headers = [(b"authorization", header)] if header is not None else []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.request(method, path, json={"items": [TEA]}, headers=headers)


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


@pytest.mark.parametrize(
    "header",
    [
        b"Bearer first-key",
        b"bearer first-key",
        b"Bearer  first-key ",
        "Bearer geheim-schlüssel".encode(),
        basic("anyone", "first-key"),
        basic("", "geheim-schlüssel"),
        b"bASIC " + basic("x", "first-key")[6:],
    ],
)
def test_a_known_key_opens_the_service(header: bytes) -> None:
    assert_error(asyncio.run(ask("POST", "/score", header)), 503, "not_ready")


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer wrong",
        b"Bearer first-key2",
        b"Bearer first-key,geheim",
        b"first-key",
        b"Token first-key",
        b"Basic",
        b"Basic ???",
        b"Basic \xff\xfe",
        b"Bearer \xff\xfe",
        basic("first-key", ""),
        basic("first-key", "wrong"),
        b"Basic " + base64.b64encode(b"first-key"),
    ],
)
def test_any_other_header_is_401_and_says_how_to_send_the_key(header: bytes | None) -> None:
    response = asyncio.run(ask("POST", "/score", header))
    assert_error(response, 401, "unauthorized", says="Authorization: Bearer KEY")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", [*PATHS, "/info", "/docs", "/openapi.json", "/unknown"])
def test_every_other_path_needs_the_key(path: str) -> None:
    assert_error(asyncio.run(ask("POST" if path in PATHS else "GET", path, None)), 401, "unauthorized")


def test_health_and_ready_are_open() -> None:
    assert asyncio.run(ask("GET", "/health", None)).status_code == 200
    assert_error(asyncio.run(ask("GET", "/ready", None)), 503, "not_ready")


def test_without_keys_nothing_is_asked_for() -> None:
    assert_error(asyncio.run(ask("POST", "/score", None, keys=None)), 503, "not_ready")


async def ask_by_url() -> httpx.Response:
    transport = httpx.ASGITransport(create_app(Settings(_env_file=None, api_keys=KEYS)))
    async with httpx.AsyncClient(transport=transport, base_url="http://trainer:first-key@test") as client:
        return await client.post("/score", json={"items": [TEA]})


def test_a_url_may_hold_the_key() -> None:
    assert_error(asyncio.run(ask_by_url()), 503, "not_ready")
