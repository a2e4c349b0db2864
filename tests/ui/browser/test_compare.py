import math

import httpx
import pytest
from playwright.sync_api import Page, expect

from app.ui.render import MINUS
from tests.api.asking import ask
from tests.ui.browser.reading import boxes_of, expect_made_of, fact, open_tab

PAIR = {"prompt": "How long should tea steep?", "chosen": "Two to three minutes.", "rejected": "The kettle boils."}


@pytest.fixture
def result(page: Page) -> object:
    """The tab, filled in by hand and compared."""
    open_tab(page, "Compare")
    for label, name in (("Prompt", "prompt"), ("Chosen response", "chosen"), ("Rejected response", "rejected")):
        page.locator("[role=tabpanel]:visible").get_by_label(label, exact=True).fill(PAIR[name])
    page.get_by_role("button", name="Compare", exact=True).click()
    expect_made_of(page, "compare-result", **PAIR)
    return page.locator("#compare-result")


NAMES = (
    *("chosen_score", "rejected_score", "probability", "margin"),
    *("loss", "loss_with_margin", "grad_chosen", "grad_rejected"),
)


def assert_shows(page: Page, service: httpx.Client, rating: str, scheme: str, model: str) -> None:
    pair = PAIR | ({"rating": rating} if rating else {})
    answer = ask(service, "/compare", {"pairs": [pair], "margin_scheme": scheme, "model": model})["results"][0]
    expect_made_of(page, "compare-result", **PAIR, rating=rating, scheme=scheme, model=model)
    result = page.locator("#compare-result")
    for name in NAMES:
        assert fact(result, name) == answer[name], name
    agrees = "agrees" if answer["correct"] else "disagrees"
    expect(result.locator(".rw-verdict")).to_contain_text(f"{model} model {agrees}")


@pytest.mark.usefixtures("result")
def test_all_figures_are_the_apis_and_follow_every_choice(page: Page, service: httpx.Client) -> None:
    assert_shows(page, service, "significantly_better", "large", "helpfulness")
    page.get_by_role("radio", name="slightly better").check()
    assert_shows(page, service, "slightly_better", "large", "helpfulness")
    page.get_by_role("radio", name="small").check()
    assert_shows(page, service, "slightly_better", "small", "helpfulness")
    page.locator("#compare-model").get_by_role("radio", name="safety").check()
    assert_shows(page, service, "slightly_better", "small", "safety")
    page.get_by_role("radio", name="no rating").check()
    assert_shows(page, service, "", "small", "safety")


@pytest.mark.usefixtures("result")
def test_the_pair_stands_on_its_curve_where_its_loss_is(page: Page, service: httpx.Client) -> None:
    answer = ask(service, "/compare", {"pairs": [PAIR | {"rating": "significantly_better"}]})["results"][0]
    dots = page.locator("#compare-result .rw-dot")
    expect(dots).to_have_count(2)
    shown = [text.replace(MINUS, "-") for text in dots.all_inner_texts()]
    assert [float(text) for text in shown] == pytest.approx([answer["loss"], answer["loss_with_margin"]], abs=6e-4)
    difference = answer["chosen_score"] - answer["rejected_score"]
    assert answer["loss"] == pytest.approx(math.log1p(math.exp(-difference)))
    area, *boxes = boxes_of(page.locator("#compare-result .rw-area, #compare-result .rw-dot"))
    heights = page.locator("#compare-result .rw-y span").all_inner_texts()
    lowest, highest = (float(heights[i].replace(MINUS, "-")) for i in (0, -1))
    ticks = page.locator("#compare-result .rw-x span").all_inner_texts()
    low, high = (float(tick.replace(MINUS, "-")) for tick in (ticks[0], ticks[-1]))
    for box, loss in zip(boxes, (answer["loss"], answer["loss_with_margin"]), strict=True):
        height = (area["y"] + area["height"] - box["y"] - box["height"] / 2) / area["height"]
        assert height * area["height"] == pytest.approx((loss - lowest) / (highest - lowest) * area["height"], abs=1.0)
        place = (box["x"] + box["width"] / 2 - area["x"]) / area["width"]
        assert low + place * (high - low) == pytest.approx(difference, abs=0.1)


@pytest.mark.usefixtures("result")
@pytest.mark.parametrize("width", [390, 1440])
def test_the_labels_of_the_two_losses_do_not_overlap(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function("width => innerWidth === width", arg=width)
    for rating in ("significantly better", "slightly better"):
        page.get_by_role("radio", name=rating).check()
        expect_made_of(page, "compare-result", rating=rating.replace(" ", "_"))
        first, second = boxes_of(page.locator("#compare-result .rw-dot b"))
        apart_x = first["right"] <= second["left"] or second["right"] <= first["left"]
        apart_y = first["bottom"] <= second["top"] or second["bottom"] <= first["top"]
        assert apart_x or apart_y


def test_the_first_sight_is_an_example_compared(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#compare-result .rw-verdict")).to_be_visible()
    expect(page.locator("#compare-code [data-code=curl] code")).to_contain_text("/compare")


@pytest.mark.usefixtures("result")
def test_an_edit_dims_the_result_and_an_empty_field_is_refused(page: Page) -> None:
    page.get_by_label("Rejected response").fill(" ")
    expect(page.get_by_text("Inputs changed. Press Compare to update.")).to_be_visible()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#compare-error").get_by_role("alert")).to_contain_text("The rejected response is empty")


def test_swapping_turns_the_verdict_around(page: Page, result: object, service: httpx.Client) -> None:
    del result
    page.get_by_role("button", name="Swap the two").click()
    expect(page.get_by_label("Rejected response")).to_have_value(PAIR["chosen"])
    swapped = PAIR | {"chosen": PAIR["rejected"], "rejected": PAIR["chosen"], "rating": "significantly_better"}
    answer = ask(service, "/compare", {"pairs": [swapped]})["results"][0]
    expect_made_of(page, "compare-result", chosen=PAIR["rejected"], rejected=PAIR["chosen"])
    assert fact(page.locator("#compare-result"), "chosen_score") == answer["chosen_score"]
