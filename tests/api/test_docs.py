"""/docs and /redoc: everything from the service itself, under whatever prefix a proxy gives it."""

import asyncio
import base64
import re
from urllib.parse import urljoin

import httpx
import pytest

from app.main import create_app
from app.settings import Settings

PREFIXED = "https://cluster.example/rewards/v2"
BASIC = 'Basic realm="reward-service", charset="UTF-8"'


def urls_of(page: str) -> list[str]:
    """What the page loads: scripts, styles, icons and the document."""
    return re.findall(r"""(?:src=|href=|spec-url=|url: ?)["']([^"']+)["']""", page)


async def get(path: str, *, headers: dict[str, str] | None = None, keys: tuple[str, ...] = ()) -> httpx.Response:
    app = create_app(Settings(_env_file=None, api_keys=keys))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path, headers=headers or {})


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_loads_only_what_the_service_has_beside_it(path: str) -> None:
    page = asyncio.run(get(path))
    assert page.status_code == 200
    urls = urls_of(page.text)
    assert len(urls) >= 3
    assert "openapi.json" in urls
    for url in urls:
        behind_proxy = urljoin(f"{PREFIXED}{path}", url)
        assert behind_proxy.startswith(f"{PREFIXED}/"), url
        answer = asyncio.run(get(behind_proxy.removeprefix(PREFIXED)))
        assert answer.status_code == 200, url
        assert len(answer.content) > 100


def test_the_documents_server_is_beside_the_document() -> None:
    schema = asyncio.run(get("/openapi.json")).json()
    assert [urljoin(f"{PREFIXED}/openapi.json", server["url"]) for server in schema["servers"]] == [f"{PREFIXED}/"]


@pytest.mark.parametrize("name", ["core.py", "..%2Fcore.py", "swagger-ui.css%00", ""])
def test_no_other_file_is_served(name: str) -> None:
    assert asyncio.run(get(f"/docs/{name}")).status_code == 404


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/docs/swagger-ui.css"])
def test_with_keys_a_browser_asks_for_one(path: str) -> None:
    refused = asyncio.run(get(path, keys=("secret",)))
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == BASIC
    basic = {"authorization": "Basic " + base64.b64encode(b"me:secret").decode()}
    assert asyncio.run(get(path, keys=("secret",), headers=basic)).status_code == 200


@pytest.mark.parametrize("path", ["/score", "/metrics", "/docsx", "/unknown"])
def test_a_program_is_asked_for_a_bearer_token(path: str) -> None:
    assert asyncio.run(get(path, keys=("secret",))).headers["www-authenticate"] == "Bearer"
