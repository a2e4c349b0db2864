import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import Serve
from tests.models import make_model
from tests.processes import SERVE, environment, running, url_from
from tests.ui.browser.conftest import FIRST_RESULT, Open
from tests.ui.browser.reading import PATIENCE_MS, open_tab, opened

TABS = ("Score", "Compare", "PPO reward", "Evaluate", "Live")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_every_tab_fits_its_window(open_page: Open, width: int, scheme: str) -> None:
    page = open_page(width=width, color_scheme=scheme)
    expect(page.locator("#head")).to_contain_text("parameters")
    for tab in TABS:
        open_tab(page, tab)
        assert page.evaluate("document.fonts.ready.then(() => document.documentElement.scrollWidth)") <= width, tab


def test_every_field_and_button_has_a_name_and_is_reached_with_tab(open_page: Open) -> None:
    page = open_page()
    for tab in TABS:
        page.get_by_role("tab", name=tab).focus()
        page.keyboard.press("Enter")
        unnamed = opened(page, tab).evaluate(
            """panel => [...panel.querySelectorAll('textarea, input:not([type=hidden]), button, select')]
                .filter(field => field.offsetParent)
                .filter(field => !(field.labels?.length || field.ariaLabel || field.title || field.textContent.trim()))
                .map(field => field.outerHTML.slice(0, 200))"""
        )
        assert unnamed == [], tab
    open_tab(page, "Score")
    page.locator("#score-prompt textarea").focus()
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.type"))
    assert reached[:4] == ["textarea", "textarea", "textarea", "Add a response"]
    assert "Score" in reached


def test_the_head_says_which_models_answer(open_page: Open, service: httpx.Client) -> None:
    page = open_page()
    head = page.locator("#head")
    info = service.get("/info").json()
    for name, model in info["models"].items():
        expect(head).to_contain_text(name)
        expect(head).to_contain_text(Path(model["model_id"]).name)
        expect(head).to_contain_text(model["version"].removeprefix("sha256:")[:8])
    expect(head).to_contain_text(info["version"])
    expect(head.get_by_text("demo", exact=True)).to_have_count(0)
    expect(head.get_by_role("link", name="API")).to_be_visible()


def test_a_demonstration_model_is_marked_as_one(open_page: Open, serve: Serve, tmp_path: Path) -> None:
    marked = make_model(tmp_path, seed=1)
    (marked / "README.md").write_text("---\ntags: [demo]\n---\n", encoding="utf-8")
    with serve(ui=True, safety_model=str(marked)) as client:
        page = open_page(str(client.base_url))
        expect(page.locator("#head").get_by_text("demo", exact=True)).to_have_count(1)
        page.context.close()  # before its server is gone, which would be an error on the page


def test_with_keys_a_browser_logs_in_and_what_it_asks_is_answered(browser: Browser, serve: Serve) -> None:
    with serve(ui=True, api_keys="geheim-schlüssel") as client:
        refused = client.get("/ui/")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert client.get("/info").headers["www-authenticate"] == "Bearer"
        credentials = {"username": "anyone", "password": "geheim-schlüssel"}
        context = browser.new_context(http_credentials=credentials)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(f"{client.base_url}/ui/")
        page.locator(FIRST_RESULT).first.wait_for()
        page.get_by_role("button", name="A refusal").click()
        expect(page.locator("#score-result .rw-bars")).to_be_visible()
        open_tab(page, "PPO reward")
        expect(page.locator("#ppo-code [data-code=curl] code")).to_contain_text("$REWARD_CLIENT_API_KEY")
        assert "geheim" not in page.content()
        context.close()


def test_with_one_model_the_page_says_what_it_cannot_say(open_page: Open, serve: Serve) -> None:
    with serve(ui=True, safety_model="") as client:
        page = open_page(str(client.base_url))
        page.get_by_role("button", name="A refusal").click()
        page.get_by_role("button", name="Score", exact=True).click()
        expect(page.locator("#score-result .rw-verdict")).to_contain_text("nothing to select from")
        page.get_by_role("tab", name="PPO reward").click()
        page.get_by_role("button", name="Compute rewards").click()
        expect(page.locator("#ppo-error").get_by_role("alert")).to_contain_text("set REWARD_SAFETY_MODEL")
        page.context.close()


def test_an_open_page_does_not_hold_up_the_end(browser: Browser, safety_dir: Path) -> None:
    """The process ends by itself, soon and with 0, while a browser has the live figures open."""
    options = ["--ui", "true", "--safety-model", str(safety_dir), "--helpfulness-model", str(safety_dir)]
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    command = [*SERVE, *options, "--log-format", "text"]
    with running(command, env=environment(**nowhere), stderr=subprocess.PIPE) as process:
        url = url_from(process)
        context = browser.new_context()
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(f"{url}/ui/")
        page.get_by_role("tab", name="Live").click()
        expect(page.locator("#live-result [data-is=in_flight]")).to_have_text("0")
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(timeout=20) == 0, rest
        context.close()
    assert "Traceback" not in rest, rest
