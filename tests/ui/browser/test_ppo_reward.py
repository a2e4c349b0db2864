import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from app.ui import batch
from tests.api.asking import ask
from tests.ui.browser.reading import values_of

ROOT = Path(__file__).resolve().parents[3]
FIRST = next(iter(batch.EXAMPLES))
OPTIONS: dict[str, Any] = {"beta": 0.01, "safety_threshold": 0.15, "token_rewards": True}


@pytest.fixture
def tab(page: Page) -> Page:
    page.get_by_role("tab", name="PPO reward").click()
    expect(page.get_by_role("button", name="Compute rewards")).to_be_visible()
    return page


def compute(page: Page) -> Locator:
    page.get_by_role("button", name="Compute rewards").click()
    expect(page.locator("#ppo-result .rw-stage").first).to_be_visible()
    return page.locator("#ppo-result")


def column(page: Page, stage: str) -> list[float]:
    return values_of(page.locator(f"#ppo-result [data-stage={stage}] .rw-value"))


def assert_shows(page: Page, results: list[dict[str, Any]]) -> None:
    for name in ("shaped_score", "whitened", "reward"):
        assert column(page, name) == pytest.approx([result[name] for result in results], rel=1e-12), name
    probabilities = [1 / (1 + math.exp(-result["safety_score"])) for result in results]
    assert column(page, "safety_probability") == pytest.approx(probabilities)


@pytest.mark.parametrize("name", batch.EXAMPLES)
def test_every_stage_of_an_example_is_the_apis(tab: Page, service: httpx.Client, name: str) -> None:
    tab.get_by_role("button", name=name).click()
    expect(tab.locator("#ppo-result")).to_contain_text("Press Compute rewards")
    compute(tab)
    items = batch.example(name)
    mode = "group" if "group_id" in items[0] else "batch"
    answer = ask(service, "/ppo-reward", OPTIONS | {"items": items, "whiten": {"mode": mode}})
    assert_shows(tab, answer["results"])
    for i, result in enumerate(answer["results"], 1):
        cells = values_in(tab.locator(f"#ppo-result .rw-heat[data-item='{i}'] .rw-cell"))
        assert cells == pytest.approx(result["token_rewards"], rel=1e-12)
        assert sum(cells) == pytest.approx(result["reward"])
        tags = tab.locator(f"#ppo-result [data-stage=safety_probability] .rw-row[data-item='{i}'] .rw-tags")
        expect(tags).to_contain_text(result["selected"])
        is_vetoed = result["selected"] == "safety" and not items[i - 1].get("is_safety")
        expect(tags.locator(".rw-veto")).to_have_count(int(is_vetoed))


def values_in(cells: Locator) -> list[float]:
    return [float((cell.get_attribute("title") or "").partition(": ")[2]) for cell in cells.all()]


def test_beta_redraws_the_rewards_by_keyboard_and_no_model_runs(tab: Page, service: httpx.Client) -> None:
    compute(tab)
    before = service.get("/metrics").text
    rewards = column(tab, "reward")
    slider = tab.locator("#ppo-beta input[type=range]")
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
    compute(tab)
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
    compute(tab)
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
    tab.get_by_role("button", name="Or a JSONL file").click()
    text = "\n".join(map(json.dumps, ROWS))
    if how == "typed":
        tab.locator("#ppo-jsonl textarea").fill(text)
        tab.get_by_role("button", name="Load into the table").click()
    elif how == "chosen":
        (tmp_path / "batch.jsonl").write_text(text, encoding="utf-8")
        tab.locator("input[type=file][data-jsonl]").set_input_files(tmp_path / "batch.jsonl")
    else:
        dropped = tab.evaluate_handle(
            "text => { const data = new DataTransfer(); data.items.add(new File([text], 'batch.jsonl')); return data; }",
            text,
        )
        for event in ("dragover", "drop"):
            tab.locator("#ppo-drop textarea").dispatch_event(event, {"dataTransfer": dropped})
    expect(tab.locator("#ppo-result")).to_contain_text("Press Compute rewards")
    compute(tab)
    assert_shows(tab, ask(service, "/ppo-reward", OPTIONS | {"items": ROWS})["results"])
    assert not [url for url in asked if "upload" in url]


def run(command: list[str], text: str) -> str:
    return subprocess.run(command, input=text, capture_output=True, check=True, text=True, timeout=120, cwd=ROOT).stdout  # noqa: S603


def test_the_curl_and_the_python_that_are_shown_give_what_is_shown(tab: Page) -> None:
    compute(tab)
    field = tab.locator("#ppo-beta input[type=number]")
    field.fill("0.2")
    field.press("Enter")
    expect(tab.locator("#ppo-result")).to_contain_text("no model ran")
    rewards = column(tab, "reward")
    command, script = (tab.locator(f"#ppo-{name} code").inner_text() for name in ("curl", "python"))
    answer = json.loads(run(["sh"], command))
    assert [result["reward"] for result in answer["results"]] == pytest.approx(rewards, rel=1e-12)
    lines = run([sys.executable, "-"], script).splitlines()
    assert [float(line.split()[1]) for line in lines] == pytest.approx(rewards, rel=1e-12)
    assert [line.split()[0] for line in lines] == [result["selected"] for result in answer["results"]]


def test_the_code_is_copied_whole(tab: Page) -> None:
    compute(tab)
    button = tab.locator("#ppo-curl").get_by_role("button")
    button.focus()
    tab.keyboard.press("Enter")
    expect(button).to_have_text("Copied")
    tab.get_by_role("tab", name="Score").click()
    field = tab.get_by_label("Response", exact=True)
    field.focus()
    tab.keyboard.press("Control+V")
    assert field.input_value().strip() == (tab.locator("#ppo-curl code").text_content() or "").strip()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a"', "line 1 is not JSON"),
        ('{"prompt": "a", "response": "b", "colour": 1}\n{"text": "c"}', "items[0].colour"),
        ('{"safety_score": 1.0, "helpfulness_score": 1.0}', "send more items, whiten.stats, or whiten.mode none"),
    ],
)
def test_what_is_wrong_with_a_batch_is_said_in_words(tab: Page, text: str, says: str) -> None:
    tab.get_by_role("button", name="Or a JSONL file").click()
    tab.locator("#ppo-jsonl textarea").fill(text)
    tab.get_by_role("button", name="Load into the table").click()
    if "not JSON" not in says:
        expect(tab.locator("#ppo-result")).to_contain_text("Press Compute rewards")
        tab.get_by_role("button", name="Compute rewards").click()
    expect(tab.locator("#ppo-error").get_by_role("alert")).to_contain_text(says)
