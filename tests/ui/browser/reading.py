"""Values as the page has them: the whole number behind each rounded one."""

import subprocess
from pathlib import Path

from playwright.sync_api import Locator, Page, expect


def value_of(place: Locator) -> float:
    return float(place.locator("data").first.get_attribute("value") or "nan")


def values_of(places: Locator) -> list[float]:
    return [float(data.get_attribute("value") or "nan") for data in places.locator("data").all()]


def fact(result: Locator, name: str) -> float:
    return value_of(result.locator(f"[data-is={name}]"))


ROOT = Path(__file__).resolve().parents[3]


def run(command: list[str], text: str) -> str:
    """What a command prints that reads the text as its input."""
    return subprocess.run(command, input=text, capture_output=True, check=True, text=True, timeout=120, cwd=ROOT).stdout  # noqa: S603


def drop_file(page: Page, selector: str, text: str) -> None:
    """Drops a file with this text on what the selector finds, as a person would."""
    dropped = page.evaluate_handle(
        "text => { const data = new DataTransfer(); data.items.add(new File([text], 'file.jsonl')); return data; }",
        text,
    )
    for event in ("dragover", "drop"):
        page.locator(selector).dispatch_event(event, {"dataTransfer": dropped})


def fragment_of(page: Page) -> str:
    """The fragment of the link to the present inputs, copied as a person would."""
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Link copied")).to_be_visible()
    fragment: str = page.url.partition("#")[2]
    return fragment
