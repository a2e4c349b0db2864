from contextlib import suppress

import httpx
from playwright.sync_api import Page, Route, expect

from app.ui.figures import Exposition
from app.ui.render import count
from tests.api.asking import TEA, ask
from tests.ui.browser.conftest import PATIENCE_MS, Open

NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
"""Between groups of three digits."""


def test_the_figures_are_those_of_the_metrics_and_renew_themselves(page: Page, service: httpx.Client) -> None:
    ask(service, "/score", {"items": [TEA]})
    page.get_by_role("tab", name="Live").click()
    shown_when_known(page, service)
    ask(service, "/score", {"items": [TEA] * 5})
    seen = shown_when_known(page, service)
    for model in ("safety", "helpfulness"):
        bars = page.locator(f"#live-result .rw-histogram.rw-{model} .rw-unseen").all_text_contents()
        counts = [float(bar.rpartition(": ")[2].replace(NARROW_SPACE, "")) for bar in bars]
        assert counts == [number for _, number in seen.histogram("reward_score", model=model)]


def test_latency_and_errors_of_the_last_minute_are_shown(page: Page, service: httpx.Client) -> None:
    page.get_by_role("tab", name="Live").click()
    errors = page.locator("#live-result [data-is=errors]")
    expect(errors).to_be_visible()
    page.wait_for_timeout(1500)  # the first moment, which the rates are counted from
    before = int(errors.inner_text())
    ask(service, "/score", {"items": [TEA]})
    assert service.post("/score", json={"items": []}).status_code == 422
    expect(errors).to_have_text(str(before + 1))
    expect(page.locator("#live-result [data-is=p50]")).to_contain_text("s")
    expect(page.locator("#live-result [data-is=p99]")).to_contain_text("s")
    expect(page.locator("#live-code [data-code=curl] code")).to_contain_text("/metrics")


def shown_when_known(page: Page, service: httpx.Client) -> Exposition:
    """The metrics, as soon as the page shows the number of scores that they have: others may still be scoring."""
    scored = page.locator("#live-result [data-is=scored]")
    for _ in range(12):
        seen = Exposition(service.get("/metrics").text)
        known = count(seen.total("reward_scored_sequences_total"))
        with suppress(AssertionError):
            expect(scored).to_have_text(known, timeout=5000)
            return seen
    raise AssertionError("the page never shows what the metrics say")


def test_the_tab_that_was_chosen_last_counts_however_long_the_server_takes(open_page: Open) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        if '"fn_index"' in (body := route.request.post_data or "") and '"index"' in body:  # which tab was selected
            held.append(route)
        else:
            route.continue_()

    page = open_page(routes={"**/queue/join*": hold})
    page.get_by_role("tab", name="Live").click()
    page.wait_for_timeout(500)
    for route in reversed(held):
        route.continue_()
    page.wait_for_timeout(500)
    expect(page.locator("#live-result [data-is=in_flight]")).to_have_text("0")


def test_what_the_page_does_counts_as_no_request(page: Page, service: httpx.Client) -> None:
    page.get_by_role("tab", name="Live").click()
    in_flight = page.locator("#live-result [data-is=in_flight]")
    expect(in_flight).to_have_text("0")
    text = service.get("/metrics").text
    assert "gradio" not in text
    assert 'route="/ui' not in text


def test_the_figures_rest_while_the_tab_is_not_shown(page: Page) -> None:
    page.get_by_role("tab", name="Live").click()
    expect(page.locator("#live-result [data-is=scored]")).to_be_visible()
    page.get_by_role("tab", name="Score").click()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for _ in range(PATIENCE_MS // 2500):  # what is on its way arrives first
        asked.clear()
        page.wait_for_timeout(2500)
        if not asked:
            return
    raise AssertionError(asked)
