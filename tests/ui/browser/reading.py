"""Values as the page has them: the whole number behind each rounded one. And waits until the page is where it will stay."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

PATIENCE_MS = 60_000
"""For what must come; only a failing test waits so long."""
ROOT = Path(__file__).resolve().parents[3]


def value_of(place: Locator) -> float:
    return float(place.locator("data").first.get_attribute("value") or "nan")


def values_of(places: Locator) -> list[float]:
    return [float(data.get_attribute("value") or "nan") for data in places.locator("data").all()]


def fact(result: Locator, name: str) -> float:
    return value_of(result.locator(f"[data-is={name}]"))


def expect_made_of(page: Page, box: str, **inputs: object) -> None:
    """Waits until what stands in the box, such as "score-result" or "score-code", is that of these inputs."""
    page.wait_for_function(
        """([box, wanted]) => {
            const made = JSON.parse(document.querySelector(`#${box} [data-inputs]`)?.dataset.inputs ?? "{}");
            return Object.entries(wanted).every(([name, value]) => JSON.stringify(made[name]) === JSON.stringify(value));
        }""",
        arg=[box, inputs],
    )


def wait_until(page: Page, holds: Callable[[], bool]) -> None:
    """Waits until this holds, of what neither the page alone nor `expect` can tell."""
    until = time.monotonic() + PATIENCE_MS / 1000
    while not holds():
        assert time.monotonic() < until, "it never holds"
        page.wait_for_timeout(50)


def boxes_of(places: Locator) -> list[dict[str, float]]:
    """Where all of them are at one moment, once the fonts are there."""
    boxes: list[dict[str, float]] = places.evaluate_all(
        "async all => (await document.fonts.ready, all.map(each => each.getBoundingClientRect().toJSON()))"
    )
    return boxes


@contextmanager
def expect_words(button: Locator, words: str) -> Iterator[None]:
    """Waits, after what is done inside, until the button says these words, however soon it takes them back."""
    said: Any = button.evaluate_handle(
        """button => ({next: new Promise(resolve =>
            new MutationObserver(() => resolve(button.textContent)).observe(button, {childList: true}))})"""
    )
    yield
    assert said.evaluate("said => said.next") == words


def run(command: list[str], text: str) -> str:
    """What a command prints that reads the text as its input."""
    return subprocess.run(command, input=text, capture_output=True, check=True, text=True, timeout=120, cwd=ROOT).stdout  # noqa: S603


def open_tab(page: Page, name: str) -> Locator:
    """Opens the tab as a person would; its panel, with its result and its code."""
    page.get_by_role("tab", name=name).click()
    return opened(page, name)


def opened(page: Page, name: str) -> Locator:
    """The panel of the tab, once it is open."""
    tab = page.get_by_role("tab", name=name)
    expect(tab).to_have_attribute("aria-selected", "true")
    panel = page.locator(f"[id='{tab.get_attribute('aria-controls')}']")
    expect(panel.locator(".rw-verdict, .rw-tiles")).to_be_visible()
    expect(panel.locator("[data-code]")).to_have_count(2)
    return panel


def drop_file(page: Page, selector: str, text: str) -> None:
    """Drops a file with this text on what the selector finds, as a person would."""
    dropped = page.evaluate_handle(
        "text => { const data = new DataTransfer(); data.items.add(new File([text], 'file.jsonl')); return data; }",
        text,
    )
    for event in ("dragover", "drop"):
        page.locator(selector).dispatch_event(event, {"dataTransfer": dropped})


def fragment_of(page: Page, tab: str, **inputs: object) -> str:
    """The fragment of the link to the tab's inputs, copied as a person would once they are these."""
    expect_made_of(page, f"{tab}-code", **inputs)
    button = page.locator("[data-link]")
    with expect_words(button, "Link copied"):
        button.click()
    fragment: str = page.evaluate("location.hash.slice(1)")
    return fragment
