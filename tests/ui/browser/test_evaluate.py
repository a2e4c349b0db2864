import csv
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from app.training.evaluation import Evaluation
from app.training.pairs import read_pairs
from app.ui.evaluate import EXAMPLE, PAIRS_PER_REQUEST
from tests.api.asking import ask
from tests.ui.browser.conftest import Open
from tests.ui.browser.reading import drop_file, expect_made_of, fragment_of, open_tab, value_of

RATINGS = ("significantly_better", "better", "slightly_better")
PAIRS = [
    {"prompt": f"How long does tea number {i} steep?", "chosen": "Three minutes." * (i % 3 + 1), "rejected": f"Tea {i}"}
    | ({"rating": RATINGS[i % 3]} if i % 4 else {})
    for i in range(2 * PAIRS_PER_REQUEST + 3)
]


@pytest.fixture
def tab(page: Page) -> Page:
    open_tab(page, "Evaluate")
    return page


def evaluation(service: httpx.Client, file: Path, model: str) -> tuple[Evaluation, list[dict[str, Any]]]:
    """What the service answers about the file's pairs, and what app.training makes of it."""
    lines = read_pairs(str(file)).lines
    body = {"pairs": [line.pair.model_dump(exclude_none=True) for line in lines], "model": model}
    results = ask(service, "/compare", body)["results"]
    return Evaluation(lines, results), results


def assert_shows(page: Page, expected: Evaluation, **inputs: object) -> None:
    """The page shows the evaluation of these inputs, at the latest when it has come."""
    expect_made_of(page, "evaluate-result", **inputs)
    result = page.locator("#evaluate-result")
    expect(result.locator(".rw-verdict")).to_contain_text(f"of {expected.accuracy.count} pairs")
    expect(result.locator("[data-is=accuracy]")).to_have_text(percent(expected.accuracy.value))
    for name, those in (expected.ratings | expected.by_length).items():
        row = result.locator(f"[data-group='{name.replace('_', ' ')}']")
        share = expected.row(those)["accuracy"]
        expect(row.locator("td").nth(0)).to_have_text(str(share.count))
        expect(row.locator("td").nth(1)).to_have_text(percent(share.value))
    assert value_of(result.locator("[data-is=ece]")) == pytest.approx(expected.calibration[1])
    wrong = [i for i in expected.differences.argsort(kind="stable").tolist() if not expected.correct[i]]
    shown = [int(entry.get_attribute("data-line") or 0) for entry in result.locator(".rw-errors li").all()]
    assert shown == [expected.lines[i].number for i in wrong][:20]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share else "0 %"


def test_the_first_sight_is_an_example_evaluated(tab: Page, service: httpx.Client) -> None:
    assert_shows(tab, evaluation(service, EXAMPLE, "helpfulness")[0], model="helpfulness")
    expect(tab.locator("#evaluate-code [data-code=cli] code")).to_contain_text("reward-service evaluate pairs.jsonl")


def test_dropped_pairs_are_evaluated_by_either_model_and_leave_as_csv(
    tab: Page, service: httpx.Client, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    text = "\n".join(map(json.dumps, PAIRS))
    file.write_text(text, encoding="utf-8")
    drop_file(tab, "#evaluate-pairs", text)
    assert_shows(tab, evaluation(service, file, "helpfulness")[0], pairs=text, model="helpfulness")
    tab.locator("#evaluate-model").get_by_role("radio", name="safety").check()
    expect(tab.get_by_text("Inputs changed. Press Evaluate to update.")).to_be_visible()
    tab.get_by_role("button", name="Evaluate", exact=True).click()
    expected, results = evaluation(service, file, "safety")
    assert_shows(tab, expected, pairs=text, model="safety")
    expect(tab.locator("#evaluate-result .rw-verdict")).to_contain_text("safety")
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename == "evaluation.csv"
    with Path(download.value.path()).open(encoding="utf-8", newline="") as rows:
        table = list(csv.DictReader(rows))
    assert [row["chosen"] for row in table] == [pair["chosen"] for pair in PAIRS]
    assert [float(row["chosen_score"]) for row in table] == pytest.approx([r["chosen_score"] for r in results])
    assert [row["correct"] for row in table] == [str(result["correct"]) for result in results]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": ', "Line 2 is not JSON"),
        ('\n{"prompt": "a", "chosen": "b"}', "Line 2"),
        (" ", "There are no pairs."),
        (
            "\n".join([json.dumps(PAIRS[0])] * PAIRS_PER_REQUEST)
            + "\n\n"
            + json.dumps({"prompt": "a", "chosen": "tea " * 600, "rejected": "b"}),
            f"Line {PAIRS_PER_REQUEST + 2}",
        ),
    ],
)
def test_a_line_that_is_wrong_is_named(tab: Page, text: str, says: str) -> None:
    tab.locator("#evaluate-pairs textarea").fill(text)
    tab.get_by_role("button", name="Evaluate", exact=True).click()
    expect(tab.locator("#evaluate-error").get_by_role("alert")).to_contain_text(says)


def test_a_link_restores_the_pairs_and_evaluates_them(
    tab: Page, open_page: Open, service: httpx.Client, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    pair = {"prompt": "Wie lange? 漢字", "chosen": "Zwei Minuten. <b> 🙂", "rejected": "tea", "rating": "better"}
    text = json.dumps(pair) + "\n" + json.dumps(PAIRS[0])
    file.write_text(text, encoding="utf-8")
    tab.locator("#evaluate-pairs textarea").fill(text)
    tab.locator("#evaluate-model").get_by_role("radio", name="safety").check()
    tab.locator("#evaluate-scheme").get_by_role("radio", name="small").check()
    inputs = {"pairs": text, "model": "safety", "scheme": "small"}
    other = open_page(fragment=fragment_of(tab, "evaluate", **inputs))
    expect(other.get_by_role("tab", name="Evaluate")).to_have_attribute("aria-selected", "true")
    assert_shows(other, evaluation(service, file, "safety")[0], **inputs)
    expect(other.locator("#evaluate-result .rw-verdict")).to_contain_text("safety")
    expect(other.locator("#evaluate-result .rw-stale")).to_have_count(0)
    expect(other.locator("#evaluate-pairs textarea")).to_have_value(text)
    expect(other.locator("#evaluate-scheme").get_by_role("radio", name="small")).to_be_checked()
    expect(other.locator("#evaluate-code [data-code=cli] code")).to_contain_text("--model safety")
