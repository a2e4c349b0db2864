"""A web page whose own name was rebound to 127.0.0.1 has the browser send that name: the service is not for it."""

import asyncio
from typing import Any

import httpx
import pytest

from app.http.access import is_allowed, is_allowed_host
from app.main import create_app
from app.settings import Settings
from tests.api.asking import TEA, assert_error


async def ask(asked_for: str | None, path: str = "/score", **settings: Any) -> httpx.Response:
    """The answer of a service that still loads: 503 to whom it takes, 403 to others."""
    app = create_app(Settings(_env_file=None, **settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        request = client.build_request("POST", path, json={"items": [TEA]})
        del request.headers["host"]
        if asked_for is not None:
            request.headers["host"] = asked_for
        return await client.send(request)


def is_taken(response: httpx.Response) -> bool:
    if response.status_code == 403:
        assert_error(response, 403, "forbidden", says="REWARD_ALLOWED_HOSTS")
        return False
    assert_error(response, 503, "not_ready")
    return True


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "localhost",
        "localhost:8000",
        "LOCALHOST.",
        "rewards.localhost:8000",
        "127.0.0.1:8000",
        "10.1.2.3",
        "[::1]:8000",
        "[::ffff:127.0.0.1]",
        "reward-service:8000",
        "test",
    ],
)
def test_addresses_and_local_names_are_taken(host: str | None) -> None:
    assert is_taken(asyncio.run(ask(host)))


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "127.1", "1.2.3.4.5"],
)
def test_names_of_the_public_internet_are_refused_on_loopback(host: str) -> None:
    assert not is_taken(asyncio.run(ask(host)))


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "localhost"])
def test_every_way_to_bind_to_loopback_is_one(host: str) -> None:
    assert not is_taken(asyncio.run(ask("evil.example", host=host)))


def test_names_that_are_allowed_are_taken_and_others_still_refused() -> None:
    allowed = "rewards.example.com, OTHER.example.com"
    assert is_taken(asyncio.run(ask("Rewards.Example.com:443", allowed_hosts=allowed)))
    assert is_taken(asyncio.run(ask("other.example.com", allowed_hosts=allowed)))
    assert not is_taken(asyncio.run(ask("evil.example", allowed_hosts=allowed)))
    assert is_taken(asyncio.run(ask("evil.example", allowed_hosts="*")))


def test_beyond_loopback_any_name_is_taken_unless_names_are_given() -> None:
    beyond = {"host": "0.0.0.0"}  # noqa: S104 - nothing is bound here
    assert is_taken(asyncio.run(ask("rewards.cluster.example", **beyond)))
    assert not is_taken(asyncio.run(ask("rewards.cluster.example", **beyond, allowed_hosts="localhost")))


def test_with_api_keys_the_key_decides() -> None:
    assert_error(asyncio.run(ask("evil.example", api_keys="key")), 401, "unauthorized")


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes_are_answered_under_any_name(path: str) -> None:
    assert asyncio.run(ask("evil.example", path)).status_code != 403


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_page_may_send_to_another_site_without_asking_is_refused(
    client: httpx.Client, content_type: str
) -> None:
    body = b'{"items": [{"text": "tea"}]}'
    for path in ("/score", "/classify"):
        response = client.post(
            path, content=body, headers={"content-type": content_type, "origin": "http://evil.example"}
        )
        assert response.status_code in {400, 415}
        assert "application/json" in response.text


def test_a_browser_that_asks_whether_another_site_may_send_json_gets_no_leave(client: httpx.Client) -> None:
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    response = client.options("/score", headers=asked)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-origin", 503), ("none", 503), (None, 503)])
def test_a_browser_that_says_that_another_site_sends_is_refused(site: str | None, status: int) -> None:
    async def send() -> httpx.Response:
        app = create_app(Settings(_env_file=None, api_keys="key"))
        headers = {"authorization": "Bearer key"} | ({"sec-fetch-site": site} if site else {})
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/score", json={"items": [TEA]}, headers=headers)

    assert asyncio.run(send()).status_code == status


def test_only_hosts_of_usual_length_are_remembered() -> None:
    is_allowed_host.cache_clear()
    long = b"a" * 60_000
    assert [
        is_allowed(host, frozenset()) for host in (b"localhost:8000", b"evil.example", long, long + b".example")
    ] == [
        True,
        False,
        True,
        False,
    ]
    assert is_allowed_host.cache_info().currsize == 2
