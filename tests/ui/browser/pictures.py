"""Pictures in docs/ui of the tabs named, or of all, on a phone and on a desktop, light and dark:
`python -m tests.ui.browser.pictures [TAB ...]`.
"""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from app.ui import batch
from tests.processes import SERVE, read_on, running, url_from
from tests.ui.browser.conftest import CHROMIUM, QUIET
from tests.ui.browser.reading import PATIENCE_MS, expect_made_of, open_tab

OUT = Path(__file__).resolve().parents[3] / "docs" / "ui"
SIZES = {1440: 900, 390: 844}
NUM_COLOURS = 256


@contextmanager
def served() -> Iterator[str]:
    """The models in models/ with the page; its address."""
    command = [*SERVE, "--ui", "true", "--log-format", "text"]
    with running(command, env=os.environ, stderr=subprocess.PIPE) as process:
        url = url_from(process)
        read_on(process)
        yield url


def trainer(url: str, until: threading.Event) -> None:
    """Groups of responses as they come from a trainer, so that there is something to see."""
    items = [item for name in batch.EXAMPLES for item in batch.example(name)]
    inputs = [{"prompt": item["prompt"], "response": item["response"]} for item in items]
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client, ThreadPoolExecutor(16) as pool:
        turn = 0
        while not until.is_set():
            turn += 1
            bodies = [
                {"items": [{**entry, "response": f"{entry['response']} ({turn})"}] * (1 + (turn + i) % 3)}
                for i, entry in enumerate(inputs)
            ]
            list(pool.map(lambda body: client.post("/score", json=body), bodies))


@contextmanager
def traffic(url: str) -> Iterator[None]:
    """A trainer at work, whose requests are all answered at the end."""
    until = threading.Event()
    work = threading.Thread(target=trainer, args=(url, until))
    work.start()
    try:
        yield
    finally:
        until.set()
        work.join()


def score(page: Page) -> None:
    page.locator("#score-result .rw-ranking").wait_for()


def compare(page: Page) -> None:
    page.locator("#compare-result .rw-verdict").wait_for()


def ppo_reward(page: Page) -> None:
    page.locator("#ppo-result .rw-stages").wait_for()
    field = page.locator("#ppo-beta input[type=number]")
    field.fill("0.1")
    field.press("Enter")
    expect_made_of(page, "ppo-result", beta=0.1)
    expect_made_of(page, "ppo-code", beta=0.1)


def evaluate(page: Page) -> None:
    page.locator("#evaluate-result .rw-verdict").wait_for()


def live(page: Page) -> None:
    page.locator("#live-result .rw-histogram").first.wait_for()
    page.wait_for_timeout(20_000)  # for the lines of the last minute to have some length


TABS = {"Score": score, "Compare": compare, "PPO reward": ppo_reward, "Evaluate": evaluate, "Live": live}


def save(png: bytes, file: Path) -> None:
    """In its commonest colours: a page has hardly more, and the repository keeps every version."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    counted: Any = picture.getcolors(picture.width * picture.height)
    commonest = sorted(counted, reverse=True)[:NUM_COLOURS]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in commonest for part in colour])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(file, optimize=True)
    sys.stdout.write(f"{file.name}: {file.stat().st_size // 1024} KB\n")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    with served() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        expect.set_options(timeout=PATIENCE_MS)
        for width, height in SIZES.items():
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                context.set_default_timeout(PATIENCE_MS)
                page = context.new_page()
                page.goto(f"{url}/ui/")
                for name, use in ((name, TABS[name]) for name in sys.argv[1:] or TABS):
                    open_tab(page, name)
                    with traffic(url) if use is live else nullcontext():
                        use(page)
                        page.mouse.move(0, 0)
                        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
                        png = page.screenshot(full_page=True)
                    save(png, OUT / f"{name.split()[0].lower()}-{width}-{scheme}.png")
                context.close()
        browser.close()


if __name__ == "__main__":
    main()
