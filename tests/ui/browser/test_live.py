import httpx
from playwright.sync_api import Page, Route, expect

from app.ui.figures import Exposition
from app.ui.render import count
from tests.api.asking import TEA, ask
from tests.ui.browser.conftest import Open
from tests.ui.browser.reading import PATIENCE_MS, open_tab, wait_until

NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
"""Between groups of three digits."""


def test_the_figures_are_those_of_the_metrics_and_renew_themselves(page: Page, service: httpx.Client) -> None:
    ask(service, "/score", {"items": [TEA]})
    open_tab(page, "Live")
    expect_figures_of_the_metrics(page, service)
    ask(service, "/score", {"items": [TEA] * 5})
    expect_figures_of_the_metrics(page, service)


def expect_figures_of_the_metrics(page: Page, service: httpx.Client) -> None:
    """Waits until the page shows what the metrics say: others may still be scoring."""

    def are_shown() -> bool:
        seen = Exposition(service.get("/metrics").text)
        shown = {model: bars_of(page, model) for model in ("safety", "helpfulness")}
        known = {model: [number for _, number in seen.histogram("reward_score", model=model)] for model in shown}
        scored = page.locator("#live-result [data-is=scored]").inner_text()
        return shown == known and scored == count(seen.total("reward_scored_sequences_total"))

    wait_until(page, are_shown)


def bars_of(page: Page, model: str) -> list[float]:
    bars = page.locator(f"#live-result .rw-histogram.rw-{model} .rw-unseen").all_text_contents()
    return [float(bar.rpartition(": ")[2].replace(NARROW_SPACE, "")) for bar in bars]


def test_latency_and_errors_of_the_last_minute_are_shown(page: Page, service: httpx.Client) -> None:
    open_tab(page, "Live")
    errors = page.locator("#live-result [data-is=errors]")
    expect(errors).to_have_text("0")  # since the first moment, which is on the page
    ask(service, "/score", {"items": [TEA]})
    assert service.post("/score", json={"items": []}).status_code == 422
    expect(errors).to_have_text("1")
    expect(page.locator("#live-result [data-is=p50]")).to_contain_text("s")
    expect(page.locator("#live-result [data-is=p99]")).to_contain_text("s")
    expect(page.locator("#live-code [data-code=curl] code")).to_contain_text("/metrics")


def test_the_tab_that_was_chosen_last_counts_however_long_the_server_takes(
    open_page: Open, service: httpx.Client
) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        if '"fn_index"' in (body := route.request.post_data or "") and '"index"' in body:  # which tab was selected
            held.append(route)
        else:
            route.continue_()

    page = open_page(routes={"**/queue/join*": hold})
    open_tab(page, "Live")
    for route in reversed(held):
        route.continue_()
    ask(service, "/score", {"items": [TEA]})
    expect_figures_of_the_metrics(page, service)  # which come anew as long as the tab counts


def test_what_the_page_does_counts_as_no_request(page: Page, service: httpx.Client) -> None:
    page.get_by_role("tab", name="Live").click()
    in_flight = page.locator("#live-result [data-is=in_flight]")
    expect(in_flight).to_have_text("0")
    text = service.get("/metrics").text
    assert "gradio" not in text
    assert 'route="/ui' not in text


def test_the_figures_rest_while_the_tab_is_not_shown(page: Page) -> None:
    open_tab(page, "Live")
    open_tab(page, "Score")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for _ in range(PATIENCE_MS // 2500):  # what is on its way arrives first
        asked.clear()
        page.wait_for_timeout(2500)
        if not asked:
            return
    raise AssertionError(asked)
