import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from app.ui import batch
from app.ui.figures import Exposition
from app.ui.ppo_controls import MAX_BETA
from tests.api.asking import ask
from tests.ui.browser.conftest import PATIENCE_MS, Open
from tests.ui.browser.reading import drop_file, fragment_of, run, values_of

FIRST = next(iter(batch.EXAMPLES))
OPTIONS: dict[str, Any] = {"beta": 0.01, "safety_threshold": 0.15, "token_rewards": True}


@pytest.fixture
def tab(page: Page) -> Page:
    page.get_by_role("tab", name="PPO reward").click()
    expect(page.locator("#ppo-result .rw-stages")).to_be_visible()
    return page


def compute(page: Page, service: httpx.Client) -> Locator:
    before = num_scored(service)
    page.get_by_role("button", name="Compute rewards").click()
    while num_scored(service) == before:
        page.wait_for_timeout(50)
    expect(page.locator("#ppo-result .rw-stages")).to_be_visible()
    return page.locator("#ppo-result")


def column(page: Page, stage: str) -> list[float]:
    return values_of(page.locator(f"#ppo-result [data-stage={stage}] .rw-value"))


def assert_shows(page: Page, results: list[dict[str, Any]]) -> None:
    """The page shows these results, at the latest when what it is computing has come."""
    expect(page.locator("#ppo-result .rw-item")).to_have_count(len(results))
    for name, result in (("shaped_score", results[0]), ("reward", results[-1])):
        cell = page.locator(f"#ppo-result [data-stage={name}] .rw-value data")
        place = cell.first if result is results[0] else cell.last
        wait_for_value(page, place, result[name])
    for name in ("shaped_score", "whitened", "reward"):
        assert column(page, name) == pytest.approx([result[name] for result in results], rel=1e-12), name
    probabilities = [1 / (1 + math.exp(-result["safety_score"])) for result in results]
    assert column(page, "safety_probability") == pytest.approx(probabilities)


def wait_for_value(page: Page, place: Locator, value: float) -> None:
    for _ in range(PATIENCE_MS // 100):
        if float(place.get_attribute("value") or "nan") == pytest.approx(value, rel=1e-12):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{place} shows {place.get_attribute('value')}, never {value}")


@pytest.mark.parametrize("name", batch.EXAMPLES)
def test_every_stage_of_an_example_is_the_apis(tab: Page, service: httpx.Client, name: str) -> None:
    tab.get_by_role("button", name=name).click()
    items = batch.example(name)
    mode = "group" if "group_id" in items[0] else "batch"
    answer = ask(service, "/ppo-reward", OPTIONS | {"items": items, "whiten": {"mode": mode}})
    assert_shows(tab, answer["results"])
    for i, result in enumerate(answer["results"], 1):
        cells = values_in(tab.locator(f"#ppo-result .rw-heat[data-item='{i}'] .rw-cell"))
        assert cells == pytest.approx(result["token_rewards"], rel=1e-12)
        assert sum(cells) == pytest.approx(result["reward"])
        tags = tab.locator(f"#ppo-result .rw-item[data-item='{i}'] [data-stage=safety_probability] .rw-tags")
        expect(tags).to_contain_text(result["selected"])
        is_vetoed = result["selected"] == "safety" and not items[i - 1].get("is_safety")
        expect(tags.locator(".rw-veto")).to_have_count(int(is_vetoed))


def values_in(cells: Locator) -> list[float]:
    return [float((cell.get_attribute("title") or "").partition(": ")[2]) for cell in cells.all()]


def test_beta_redraws_the_rewards_by_keyboard_and_no_model_runs(tab: Page, service: httpx.Client) -> None:
    compute(tab, service)
    before = service.get("/metrics").text
    rewards = column(tab, "reward")
    slider = tab.locator("#ppo-beta-slider input[type=range]")
    slider.focus()
    for _ in range(10):
        slider.press("ArrowRight")
    beta = float(slider.input_value())
    assert beta == pytest.approx(0.06)
    answer = ask(service, "/ppo-reward", OPTIONS | {"items": batch.example(FIRST), "beta": beta})
    expect(tab.locator("#ppo-result")).to_contain_text("no model ran")
    expect(tab.locator("#ppo-result [data-stage=reward] .rw-value data").first).to_have_attribute(
        "value", repr(answer["results"][0]["reward"])
    )
    assert_shows(tab, answer["results"])
    assert column(tab, "reward") != rewards
    batches = 'reward_scored_sequences_total{model="safety"}'
    scored = [
        float(line.split()[-1])
        for text in (before, service.get("/metrics").text)
        for line in text.splitlines()
        if line.startswith(batches)
    ]
    assert scored[1] - scored[0] == len(batch.example(FIRST))  # this test's own request, and none of the page's


def test_the_threshold_decides_whom_the_safety_model_vetoes(tab: Page, service: httpx.Client) -> None:
    compute(tab, service)
    field = tab.locator("#ppo-threshold input[type=number]")
    field.fill("0.9")
    field.press("Enter")
    answer = ask(service, "/ppo-reward", OPTIONS | {"items": batch.example(FIRST), "safety_threshold": 0.9})
    items = batch.example(FIRST)
    vetoed = sum(
        result["selected"] == "safety" and not item.get("is_safety")
        for item, result in zip(items, answer["results"], strict=True)
    )
    assert vetoed
    expect(tab.locator("#ppo-result .rw-verdict")).to_contain_text(f"vetoes {vetoed} of {len(items)}")
    expect(tab.locator("#ppo-result .rw-veto")).to_have_count(vetoed)
    assert_shows(tab, answer["results"])


def test_an_answer_that_comes_late_does_not_undo_a_change_of_the_controls(tab: Page, service: httpx.Client) -> None:
    held: list[Route] = []
    tab.route("**/queue/join*", lambda route: held.append(route), times=1)  # noqa: PLW0108 - playwright needs a function
    tab.get_by_role("button", name="Compute rewards").click()
    while not held:
        tab.wait_for_timeout(50)
    field = tab.locator("#ppo-threshold input[type=number]")
    field.fill("0.9")
    field.press("Enter")
    answer = ask(service, "/ppo-reward", OPTIONS | {"items": batch.example(FIRST), "safety_threshold": 0.9})
    assert_shows(tab, answer["results"])
    before = num_scored(service)
    held[0].continue_()  # asks with the threshold before the change
    while num_scored(service) == before:
        tab.wait_for_timeout(50)
    tab.wait_for_timeout(1000)  # its answer is on the page
    assert_shows(tab, answer["results"])


def num_scored(service: httpx.Client) -> float:
    return Exposition(service.get("/metrics").text).total("reward_scored_sequences_total")


PART_RULES: dict[str, dict[str, Any]] = {
    "weighted": {"mode": "weighted", "weights": {"safety": 0.3, "helpfulness": 0.7}},
    "GDPO": {"mode": "weighted", "weights": {"safety": 0.3, "helpfulness": 0.7}, "whiten_each": True},
    "Lagrangian": {"mode": "lagrangian", "lambda": 1.2},
    "worst": {"mode": "worst"},
}


@pytest.mark.parametrize("label", PART_RULES)
def test_another_rule_shows_each_models_part_and_no_model_runs(tab: Page, service: httpx.Client, label: str) -> None:
    compute(tab, service)
    tab.locator("#ppo-rule").get_by_text(label, exact=True).click()
    expect(tab.locator("#ppo-result [data-stage=safety_part]").first).to_be_visible()
    expect(tab.locator("#ppo-result")).to_contain_text("no model ran")
    options = {name: value for name, value in OPTIONS.items() if name != "safety_threshold"}
    body = options | {"items": batch.example(FIRST), "combine": PART_RULES[label]}
    results = ask(service, "/ppo-reward", body)["results"]
    part = "whitened" if label == "worst" else "contribution"
    for model in ("safety", "helpfulness"):
        expected = [result["parts"][model][part] for result in results]
        assert column(tab, f"{model}_part") == pytest.approx(expected, rel=1e-12)
    for name in ("whitened", "reward"):
        assert column(tab, name) == pytest.approx([result[name] for result in results], rel=1e-12)
    expect(tab.locator("#ppo-result .rw-veto")).to_have_count(0)
    visible = {name: tab.locator(f"#ppo-{name}").is_visible() for name in ("threshold", "weight", "lambda")}
    assert visible == {"threshold": False, "weight": label in {"weighted", "GDPO"}, "lambda": label == "Lagrangian"}
    expect(tab.locator("#ppo-code [data-code=curl] code")).to_contain_text(f'"mode": "{PART_RULES[label]["mode"]}"')
    command = tab.locator("#ppo-code [data-code=curl] code").inner_text()
    assert [result["reward"] for result in json.loads(run(["sh"], command))["results"]] == column(tab, "reward")


def test_the_table_is_edited_by_keyboard(tab: Page, service: httpx.Client) -> None:
    tab.wait_for_timeout(1500)  # the table is laid out anew when its tab is shown, and drops an edit that has begun
    cell = tab.locator("#ppo-table").get_by_role("gridcell").filter(has_text="tea tea tea")
    cell.click()
    expect(cell).to_have_attribute("aria-selected", "true")
    expect(cell).to_be_focused()
    tab.keyboard.press("Enter")
    expect(tab.locator("#ppo-table").locator("textarea:focus, input:focus")).to_have_value(re.compile("tea tea tea"))
    tab.keyboard.press("Control+A")
    tab.keyboard.type("Three minutes.")
    tab.keyboard.press("Enter")
    expect(tab.locator("#ppo-table").get_by_role("gridcell").filter(has_text="Three minutes.")).to_be_visible()
    compute(tab, service)
    items = batch.example(FIRST)
    items[1]["response"] = "Three minutes."
    assert_shows(tab, ask(service, "/ppo-reward", OPTIONS | {"items": items})["results"])


ROWS = [
    {
        "safety_score": 1.5,
        "helpfulness_score": -0.5,
        "policy_logprobs": [-0.5, -9.0],
        "reference_logprobs": [-0.25, None],
        "mask": [1, 0],
    },
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
]


@pytest.mark.parametrize("how", ["typed", "chosen", "dropped"])
def test_a_jsonl_file_becomes_the_table_and_goes_nowhere_else(
    tab: Page, service: httpx.Client, tmp_path: Path, how: str
) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    text = "\n".join(map(json.dumps, ROWS))
    if how == "typed":
        tab.get_by_role("button", name="Paste JSONL").click()
        tab.locator("#ppo-jsonl textarea").fill(text)
        tab.get_by_role("button", name="Load into the table").click()
    elif how == "chosen":
        (tmp_path / "batch.jsonl").write_text(text, encoding="utf-8")
        tab.locator("#ppo-drop input[type=file]").set_input_files(tmp_path / "batch.jsonl")
    else:
        drop_file(tab, "#ppo-table", text)
    assert_shows(tab, ask(service, "/ppo-reward", OPTIONS | {"items": ROWS})["results"])
    assert not [url for url in asked if "upload" in url]


def test_the_curl_and_the_python_that_are_shown_give_what_is_shown(tab: Page, service: httpx.Client) -> None:
    compute(tab, service)
    field = tab.locator("#ppo-beta input[type=number]")
    field.fill("0.2")
    field.press("Enter")
    expect(tab.locator("#ppo-result")).to_contain_text("no model ran")
    rewards = column(tab, "reward")
    expect(tab.locator("#ppo-code [data-code=curl] code")).to_contain_text('"beta": 0.2')
    command, script = (tab.locator(f"#ppo-code [data-code={name}] code").inner_text() for name in ("curl", "python"))
    answer = json.loads(run(["sh"], command))
    assert [result["reward"] for result in answer["results"]] == pytest.approx(rewards, rel=1e-12)
    lines = run([sys.executable, "-"], script).splitlines()
    assert [float(line.split()[1]) for line in lines] == pytest.approx(rewards, rel=1e-12)
    assert [line.split()[0] for line in lines] == [result["selected"] for result in answer["results"]]


def test_the_code_is_copied_whole(tab: Page, service: httpx.Client) -> None:
    compute(tab, service)
    button = tab.locator("#ppo-code [data-code=curl]").get_by_role("button")
    button.focus()
    tab.keyboard.press("Enter")
    expect(button).to_have_text("Copied")
    tab.get_by_role("tab", name="Score").click()
    field = tab.get_by_label("Response 1", exact=True)
    field.fill("")
    tab.keyboard.press("Control+V")
    assert field.input_value().strip() == (tab.locator("#ppo-code [data-code=curl] code").text_content() or "").strip()


def test_beta_has_no_upper_bound(tab: Page, service: httpx.Client) -> None:
    field = tab.locator("#ppo-beta input[type=number]")
    field.fill("7.5")
    field.press("Enter")
    assert_shows(tab, ask(service, "/ppo-reward", OPTIONS | {"items": batch.example(FIRST), "beta": 7.5})["results"])
    expect(tab.locator("#ppo-beta-slider input[type=range]")).to_have_value("0.5")
    field.fill("-1")
    field.press("Enter")
    expect(tab.locator("#ppo-error").get_by_role("alert")).to_contain_text("Beta is -1")


def test_an_edit_of_the_table_dims_the_rewards(tab: Page) -> None:
    notice = tab.get_by_text("Inputs changed. Press Compute rewards to update.")
    expect(notice).to_be_hidden()
    tab.locator("#ppo-table input[type=checkbox]").nth(1).click()
    expect(notice).to_be_visible()
    tab.get_by_role("button", name="Compute rewards").click()
    expect(notice).to_be_hidden()


@pytest.mark.parametrize("width", [390, 1440])
def test_the_sliders_stay_in_view_while_the_rewards_are_read(open_page: Open, width: int) -> None:
    page = open_page(width=width)
    page.set_viewport_size({"width": width, "height": 500})
    page.get_by_role("tab", name="PPO reward").click()
    rows = page.locator("#ppo-result [data-stage=reward]")
    expect(rows.last).to_be_visible()
    for row in (rows.first, rows.last):
        row.evaluate("row => row.scrollIntoView({block: 'center'})")
        for slider in ("#ppo-beta-slider", "#ppo-threshold"):
            expect(page.locator(f"{slider} input[type=range]")).to_be_in_viewport()


def test_on_a_phone_an_item_is_a_card_with_its_four_steps(open_page: Open) -> None:
    page = open_page(width=390)
    page.get_by_role("tab", name="PPO reward").click()
    card = page.locator("#ppo-result .rw-item").first
    expect(card).to_be_visible()
    box = card.bounding_box()
    assert box is not None
    for row in card.locator("[data-stage]").all():
        inner = row.bounding_box()
        assert inner is not None
        assert box["y"] <= inner["y"]
        assert inner["y"] + inner["height"] <= box["y"] + box["height"]
        expect(row.locator(".rw-of")).to_be_visible()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a"', "Line 1 is not JSON"),
        ('{"prompt": "a", "response": "b", "colour": 1}\n{"text": "c"}', "Row 1 colour"),
        ('{"safety_score": 1.0, "helpfulness_score": 1.0}', "send more items, whiten.stats, or whiten.mode none"),
    ],
)
def test_what_is_wrong_with_a_batch_is_said_in_words(tab: Page, text: str, says: str) -> None:
    drop_file(tab, "#ppo-table", text)
    expect(tab.locator("#ppo-error").get_by_role("alert")).to_contain_text(says)


def test_a_link_restores_the_batch_and_the_options_and_computes_them(
    tab: Page, open_page: Open, service: httpx.Client
) -> None:
    items = [
        {"prompt": "Wie lange zieht grüner Tee? 漢字", "response": "Zwei bis drei Minuten. <b> 🙂", "is_safety": True},
        {"prompt": "Is tea hot?", "response": "It was.", "group_id": "a, b"},
    ]
    drop_file(tab, "#ppo-table", "\n".join(map(json.dumps, items)))
    expect(tab.locator("#ppo-result .rw-item")).to_have_count(len(items))
    tab.locator("#ppo-rule").get_by_text("GDPO", exact=True).click()
    for name, value in (("beta", "0.75"), ("weight", "0.4")):
        tab.locator(f"#ppo-{name} input[type=number]").fill(value)
        tab.locator(f"#ppo-{name} input[type=number]").press("Enter")
    weights = {"safety": 0.4, "helpfulness": 0.6}
    combine = {"mode": "weighted", "weights": weights, "whiten_each": True}
    results = ask(service, "/ppo-reward", {"beta": 0.75, "combine": combine, "items": items})["results"]
    for page in (tab, open_page(fragment=fragment_of(tab))):
        expect(page.get_by_role("tab", name="PPO reward")).to_have_attribute("aria-selected", "true")
        expect(page.locator("#ppo-result .rw-item")).to_have_count(len(items))
        wait_for_value(page, page.locator("#ppo-result [data-stage=reward] .rw-value data").first, results[0]["reward"])
        assert column(page, "reward") == pytest.approx([result["reward"] for result in results], rel=1e-12)
        expect(page.locator("#ppo-result .rw-stale")).to_have_count(0)
        expect(page.locator("#ppo-weight")).to_be_visible()  # those of the rule, not of the default
        expect(page.locator("#ppo-threshold")).to_be_hidden()
        assert float(page.locator("#ppo-beta-slider input[type=range]").input_value()) == MAX_BETA
    page.locator("#ppo-code [data-code=curl]").wait_for(state="attached")
    expect(page.locator("#ppo-code [data-code=curl] code")).to_contain_text("Wie lange zieht grüner Tee? 漢字")
