import asyncio
import sys
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from app.api import errors
from app.errors import StartError
from app.http.access import AccessMiddleware
from app.http.telemetry import RouteLabels, TelemetryMiddleware
from app.main import create_app
from app.service import Service
from app.settings import Settings


class Inner:
    """What stands behind the gate, and sees how many requests are in flight."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.in_flight: list[int] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.in_flight.append(self.service.num_in_flight)
        response: Response = PlainTextResponse(str(len(await Request(scope, receive).body())))
        await response(scope, receive, send)


async def ask(path: str, body: bytes = b"", **settings: Any) -> tuple[httpx.Response, Inner, Service]:
    service = Service(Settings(_env_file=None, **settings))
    inner = Inner(service)
    app = FastAPI()
    errors.install(app)
    app.add_middleware(AccessMiddleware, service=service)
    app.add_middleware(TelemetryMiddleware, service=service, labels=RouteLabels(app))
    app.mount("/", inner)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.post(path, content=body), inner, service


@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/gradio_api/queue/data"])
def test_a_browser_is_asked_for_the_key(path: str) -> None:
    response, inner, _ = asyncio.run(ask(path, ui=True, api_keys="key"))
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Basic realm="reward-service", charset="UTF-8"'
    assert inner.in_flight == []


@pytest.mark.parametrize(("path", "ui"), [("/score", True), ("/uix", True), ("/ui/", False)])
def test_everyone_else_for_a_bearer_token(path: str, *, ui: bool) -> None:
    response, _, _ = asyncio.run(ask(path, ui=ui, api_keys="key"))
    assert response.headers["www-authenticate"] == "Bearer"


def test_what_the_page_keeps_open_is_no_request_in_flight_and_none_that_is_counted() -> None:
    response, inner, service = asyncio.run(ask("/ui/gradio_api/queue/join", b"12345", ui=True))
    assert (response.text, inner.in_flight) == ("5", [0])
    assert "/ui" not in service.metrics.exposition("")[0].decode()
    assert asyncio.run(ask("/score", ui=True))[1].in_flight == [1]


def test_the_bodys_limit_is_for_the_page_too() -> None:
    response, _, _ = asyncio.run(ask("/ui/gradio_api/queue/join", b"x" * 2000, ui=True, max_body_mb=0.001))
    assert response.status_code == 413


def test_without_the_extra_the_start_fails_in_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)  # as where it is not installed
    with pytest.raises(StartError, match=r"pip install .*\[ui\]'"):
        create_app(Settings(_env_file=None, ui=True))


def test_without_the_setting_there_is_no_page_and_no_gradio() -> None:
    app = create_app(Settings(_env_file=None))
    assert not [route for route in app.api.routes if getattr(route, "path", "").startswith("/ui")]
