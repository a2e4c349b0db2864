"""A browser on the page (`make ui-test`)."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.ui.browser.reading import PATIENCE_MS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

    from tests.conftest import Serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [  # Chromium's own errands: what is left on the wire is the page's
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]


Open = Callable[..., "Page"]
FIRST_RESULT = ", ".join(
    f"#{tab}-result .rw-verdict:visible, #{tab}-error .rw-error:visible"
    for tab in ("score", "compare", "ppo", "evaluate")
)
"""The example's, or that of the inputs in the link; in the tab that is open."""
GRADIOS_OWN = "ignore::pandas.errors.Pandas4Warning"
"""Gradio uses what pandas is about to drop."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(GRADIOS_OWN))


@pytest.fixture(scope="package")
def service(serve: "Serve") -> Iterator[httpx.Client]:
    """A client of the service with the page."""
    with serve(ui=True) as client:
        yield client


@pytest.fixture(scope="package")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import expect, sync_playwright

    assert CHROMIUM is not None, "chromium is not installed; on Debian: apt-get install chromium"
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: "Browser", service: httpx.Client) -> Iterator[Open]:
    """Opens the page; at the end nothing may have been asked of anyone else, and nothing may have gone wrong unsaid."""
    strangers: list[str] = []
    faults: list[str] = []
    contexts = []

    def start(
        url: str = "",
        *,
        width: int = 1440,
        fragment: str = "",
        watch: list[str] | None = None,
        allowed: tuple[str, ...] = (),
        routes: Mapping[str, Callable[["Route"], None]] = MappingProxyType({}),
        **options: Any,
    ) -> "Page":
        address = url or str(service.base_url)
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        for pattern, handler in routes.items():
            page.route(pattern, handler)
        page.on("request", lambda request: None if is_ours(request.url, address) else strangers.append(request.url))
        page.on("websocket", lambda socket: strangers.append(socket.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda said: (
                faults.append(f"{said.text} {said.location['url']}")
                if said.type == "error" and not any(words in said.text for words in allowed)
                else None
            ),
        )
        if watch is not None:
            page.on("request", lambda request: watch.append(request.url))
        page.goto(f"{address}/ui/" + (f"#{fragment}" if fragment else ""))
        page.get_by_role("tab", name="Score").wait_for()
        page.locator(FIRST_RESULT).first.wait_for()
        return page

    yield start
    for context in contexts:
        context.close()
    assert strangers == []
    assert faults == []


def is_ours(url: str, address: str) -> bool:
    return url.startswith((f"{address}/", "data:", f"blob:{address}"))


@pytest.fixture
def page(open_page: Open) -> "Page":
    return open_page()
