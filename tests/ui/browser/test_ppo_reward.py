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
from app.ui.ppo_controls import MAX_BETA, RULES
from tests.api.asking import ask
from tests.ui.browser.conftest import Open
from tests.ui.browser.reading import (
    boxes_of,
    drop_file,
    expect_made_of,
    expect_words,
    fragment_of,
    open_tab,
    run,
    values_of,
    wait_until,
)

FIRST = next(iter(batch.EXAMPLES))
OPTIONS: dict[str, Any] = {"beta": 0.01, "safety_threshold": 0.15, "token_rewards": True}


@pytest.fixture
def tab(page: Page) -> Page:
    open_tab(page, "PPO reward")
    return page


def column(page: Page, stage: str) -> list[float]:
    return values_of(page.locator(f"#ppo-result [data-stage={stage}] .rw-value"))


def assert_shows(page: Page, results: list[dict[str, Any]], **inputs: object) -> None:
    """The page shows these results of these inputs, at the latest when they have come."""
    expect_made_of(page, "ppo-result", **inputs)
    for name in ("shaped_score", "whitened", "reward"):
        assert column(page, name) == pytest.approx([result[name] for result in results], rel=1e-12), name
    probabilities = [1 / (1 + math.exp(-result["safety_score"])) for result in results]
    assert column(page, "safety_probability") == pytest.approx(probabilities)


@pytest.mark.parametrize("name", batch.EXAMPLES)
def test_every_stage_of_an_example_is_the_apis(tab: Page, service: httpx.Client, name: str) -> None:
    tab.get_by_role("button", name=name).click()
    items = batch.example(name)
    mode = "group" if "group_id" in items[0] else "batch"
    answer = ask(service, "/ppo-reward", OPTIONS | {"items": items, "whiten": {"mode": mode}})
    assert_shows(tab, answer["results"], batch=batch.rows_of(items), mode=mode)
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
    before = service.get("/metrics").text
    rewards = column(tab, "reward")
    slider = tab.locator("#ppo-beta-slider input[type=range]")
    slider.focus()
    for _ in range(10):
        slider.press("ArrowRight")
    beta = 0.06
    expect(slider).to_have_value(str(beta))
    answer = ask(service, "/ppo-reward", OPTIONS | {"items": batch.example(FIRST), "beta": beta})
    expect(tab.locator("#ppo-result")).to_contain_text("no model ran")
    assert_shows(tab, answer["results"], beta=beta)
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
    set_threshold(tab, 0.9)
    answer = ask(service, "/ppo-reward", OPTIONS | {"items": batch.example(FIRST), "safety_threshold": 0.9})
    items = batch.example(FIRST)
    vetoed = sum(
        result["selected"] == "safety" and not item.get("is_safety")
        for item, result in zip(items, answer["results"], strict=True)
    )
    assert vetoed
    expect(tab.locator("#ppo-result .rw-verdict")).to_contain_text(f"vetoes {vetoed} of {len(items)}")
    expect(tab.locator("#ppo-result .rw-veto")).to_have_count(vetoed)
    assert_shows(tab, answer["results"], threshold=0.9)


@pytest.mark.parametrize("asks", ["ppo-go", "ppo-result"])
def test_an_answer_that_comes_late_does_not_undo_a_change_of_the_controls(
    tab: Page, service: httpx.Client, asks: str
) -> None:
    """Neither that of a computation nor that of a check whether the result is that of the controls."""
    held: list[Route] = []
    trigger = tab.evaluate("id => gradio_config.components.find(each => each.props.elem_id === id).id", asks)

    def hold(route: Route) -> None:
        if not held and json.loads(route.request.post_data or "{}").get("trigger_id") == trigger:
            held.append(route)
        else:
            route.continue_()

    tab.route("**/queue/join*", hold)
    if asks == "ppo-go":
        tab.get_by_role("button", name="Compute rewards").click()
    else:
        set_threshold(tab, 0.5)
    wait_until(tab, lambda: bool(held))
    set_threshold(tab, 0.9)
    answer = ask(service, "/ppo-reward", OPTIONS | {"items": batch.example(FIRST), "safety_threshold": 0.9})
    assert_shows(tab, answer["results"], threshold=0.9)
    tab.locator("#ppo-result [data-inputs]").evaluate("before => before.removeAttribute('data-inputs')")
    held[0].continue_()  # asks with the threshold before the change
    assert_shows(tab, answer["results"], threshold=0.9)


def set_threshold(page: Page, threshold: float) -> None:
    field = page.locator("#ppo-threshold input[type=number]")
    field.fill(str(threshold))
    field.press("Enter")


PART_RULES: dict[str, dict[str, Any]] = {
    "weighted": {"mode": "weighted", "weights": {"safety": 0.3, "helpfulness": 0.7}},
    "GDPO": {"mode": "weighted", "weights": {"safety": 0.3, "helpfulness": 0.7}, "whiten_each": True},
    "Lagrangian": {"mode": "lagrangian", "lambda": 1.2},
    "worst": {"mode": "worst"},
}


@pytest.mark.parametrize("label", PART_RULES)
def test_another_rule_shows_each_models_part_and_no_model_runs(tab: Page, service: httpx.Client, label: str) -> None:
    tab.locator("#ppo-rule").get_by_text(label, exact=True).click()
    rule = dict(RULES)[label]
    expect_made_of(tab, "ppo-result", rule=rule)
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
    expect(tab.locator("#ppo-threshold")).to_be_hidden()
    expect(tab.locator("#ppo-weight")).to_be_visible(visible=label in {"weighted", "GDPO"})
    expect(tab.locator("#ppo-lambda")).to_be_visible(visible=label == "Lagrangian")
    expect_made_of(tab, "ppo-code", rule=rule)
    command = tab.locator("#ppo-code [data-code=curl] code").inner_text()
    assert [result["reward"] for result in json.loads(run(["sh"], command))["results"]] == column(tab, "reward")


def test_the_table_is_edited_by_keyboard(tab: Page, service: httpx.Client) -> None:
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
    tab.get_by_role("button", name="Compute rewards").click()
    items = batch.example(FIRST)
    items[1]["response"] = "Three minutes."
    results = ask(service, "/ppo-reward", OPTIONS | {"items": items})["results"]
    assert_shows(tab, results, batch=batch.rows_of(items))


ROWS: list[batch.Item] = [
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
    results = ask(service, "/ppo-reward", OPTIONS | {"items": ROWS})["results"]
    assert_shows(tab, results, batch=batch.rows_of(ROWS))
    assert not [url for url in asked if "upload" in url]


def test_the_curl_and_the_python_that_are_shown_give_what_is_shown(tab: Page) -> None:
    field = tab.locator("#ppo-beta input[type=number]")
    field.fill("0.2")
    field.press("Enter")
    expect_made_of(tab, "ppo-result", beta=0.2)
    rewards = column(tab, "reward")
    expect_made_of(tab, "ppo-code", beta=0.2)
    command, script = (tab.locator(f"#ppo-code [data-code={name}] code").inner_text() for name in ("curl", "python"))
    answer = json.loads(run(["sh"], command))
    assert [result["reward"] for result in answer["results"]] == pytest.approx(rewards, rel=1e-12)
    lines = run([sys.executable, "-"], script).splitlines()
    assert [float(line.split()[1]) for line in lines] == pytest.approx(rewards, rel=1e-12)
    assert [line.split()[0] for line in lines] == [result["selected"] for result in answer["results"]]


def test_the_code_is_copied_whole(tab: Page) -> None:
    code = tab.locator("#ppo-code [data-code=curl]")
    shown = (code.locator("code").text_content() or "").strip()
    button = code.get_by_role("button")
    with expect_words(button, "Copied"):
        button.focus()
        tab.keyboard.press("Enter")
    open_tab(tab, "Score")
    field = tab.get_by_label("Response 1", exact=True)
    field.fill("")
    tab.keyboard.press("Control+V")
    wait_until(tab, lambda: field.input_value().strip() == shown)


def test_beta_has_no_upper_bound(tab: Page, service: httpx.Client) -> None:
    field = tab.locator("#ppo-beta input[type=number]")
    field.fill("7.5")
    field.press("Enter")
    results = ask(service, "/ppo-reward", OPTIONS | {"items": batch.example(FIRST), "beta": 7.5})["results"]
    assert_shows(tab, results, beta=7.5)
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
    open_tab(page, "PPO reward")
    rows = page.locator("#ppo-result [data-stage=reward]")
    expect(rows.last).to_be_visible()
    for row in (rows.first, rows.last):
        row.evaluate("row => row.scrollIntoView({block: 'center'})")
        for slider in ("#ppo-beta-slider", "#ppo-threshold"):
            expect(page.locator(f"{slider} input[type=range]")).to_be_in_viewport()


def test_on_a_phone_an_item_is_a_card_with_its_four_steps(open_page: Open) -> None:
    page = open_page(width=390)
    open_tab(page, "PPO reward")
    box, *steps = boxes_of(page.locator("#ppo-result .rw-item[data-item='1'], .rw-item[data-item='1'] [data-stage]"))
    assert len(steps) == 4
    for step in steps:
        assert box["top"] <= step["top"]
        assert step["bottom"] <= box["bottom"]
    for name in page.locator("#ppo-result .rw-item[data-item='1'] .rw-of").all():
        expect(name).to_be_visible()


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
    items: list[batch.Item] = [
        {"prompt": "Wie lange zieht grüner Tee? 漢字", "response": "Zwei bis drei Minuten. <b> 🙂", "is_safety": True},
        {"prompt": "Is tea hot?", "response": "It was.", "group_id": "a, b"},
    ]
    drop_file(tab, "#ppo-table", "\n".join(map(json.dumps, items)))
    expect(tab.locator("#ppo-result .rw-item")).to_have_count(len(items))
    tab.locator("#ppo-rule").get_by_text("GDPO", exact=True).click()
    for name, value in (("beta", "0.75"), ("weight", "0.4")):
        tab.locator(f"#ppo-{name} input[type=number]").fill(value)
        tab.locator(f"#ppo-{name} input[type=number]").press("Enter")
    inputs = {"batch": batch.rows_of(items), "beta": 0.75, "rule": "gdpo", "weight": 0.4}
    weights = {"safety": 0.4, "helpfulness": 0.6}
    combine = {"mode": "weighted", "weights": weights, "whiten_each": True}
    results = ask(service, "/ppo-reward", {"beta": 0.75, "combine": combine, "items": items})["results"]
    for page in (tab, open_page(fragment=fragment_of(tab, "ppo", **inputs))):
        expect(page.get_by_role("tab", name="PPO reward")).to_have_attribute("aria-selected", "true")
        expect_made_of(page, "ppo-result", **inputs)
        assert column(page, "reward") == pytest.approx([result["reward"] for result in results], rel=1e-12)
        expect(page.locator("#ppo-result .rw-stale")).to_have_count(0)
        expect(page.locator("#ppo-weight")).to_be_visible()  # those of the rule, not of the default
        expect(page.locator("#ppo-threshold")).to_be_hidden()
        expect(page.locator("#ppo-beta-slider input[type=range]")).to_have_value(str(MAX_BETA))
    expect(page.locator("#ppo-code [data-code=curl] code")).to_contain_text("Wie lange zieht grüner Tee? 漢字")
