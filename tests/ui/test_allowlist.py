import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from app.ui.allowlist import RouteAllowlist


async def anything(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.url.path)


METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE"]
INNER = Starlette(routes=[Route("/{path:path}", anything, methods=METHODS)])
APP = Starlette(routes=[Mount("/ui", INNER), Route("/elsewhere", anything)])
APP.add_middleware(RouteAllowlist, path="/ui")


async def ask(method: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://test") as client:
        return await client.request(method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/ui/"),
        ("HEAD", "/ui/"),
        ("GET", "/ui/config"),
        ("GET", "/ui/theme.css"),
        ("GET", "/ui/assets/index-1.js"),
        ("GET", "/ui/static/fonts/a/b.woff2"),
        ("GET", "/ui/gradio_api/heartbeat/abc"),
        ("GET", "/ui/gradio_api/queue/data"),
        ("POST", "/ui/gradio_api/queue/join"),
    ],
)
def test_what_the_page_needs_is_served_and_told_to_load_nothing_from_elsewhere(method: str, path: str) -> None:
    response = asyncio.run(ask(method, path))
    assert response.status_code == 200
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert "http" not in response.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/ui/gradio_api/upload"),
        ("GET", "/ui/gradio_api/upload_progress"),
        ("GET", "/ui/gradio_api/file=/etc/passwd"),
        ("HEAD", "/ui/gradio_api/file=/etc/passwd"),
        ("GET", "/ui/gradio_api/file/etc/passwd"),
        ("GET", "/ui/gradio_api/proxy=http://localhost:1/"),
        ("POST", "/ui/gradio_api/component_server"),
        ("POST", "/ui/gradio_api/run/predict"),
        ("POST", "/ui/gradio_api/call/predict"),
        ("GET", "/ui/gradio_api/info"),
        ("GET", "/ui/gradio_api/openapi.json"),
        ("GET", "/ui/gradio_api/vibe-code"),
        ("GET", "/ui/gradio_api/runs"),
        ("GET", "/ui/monitoring"),
        ("POST", "/ui/login"),
        ("PUT", "/ui/"),
        ("POST", "/ui/"),
    ],
)
def test_what_it_does_not_need_is_shut(method: str, path: str) -> None:
    assert asyncio.run(ask(method, path)).status_code == 404


def test_other_paths_pass() -> None:
    assert asyncio.run(ask("GET", "/elsewhere")).text == "/elsewhere"
    assert asyncio.run(ask("GET", "/uix")).text == "Not Found"


def test_the_path_without_its_slash_leads_to_the_page_by_a_relative_redirect() -> None:
    response = asyncio.run(ask("GET", "/ui"))
    assert (response.status_code, response.headers["location"]) == (307, "ui/")


def test_a_websocket_is_closed() -> None:
    sent: list[object] = []

    async def send(message: object) -> None:
        sent.append(message)

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    asyncio.run(RouteAllowlist(INNER, "/ui")({"type": "websocket", "path": "/ui/x"}, receive, send))
    assert sent == [{"type": "websocket.close"}]
