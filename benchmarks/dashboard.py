"""`python -m benchmarks.dashboard`: the dashboard's panels under load, drawn into docs/dashboard.png.

Runs the service, a real Prometheus (Debian: apt-get install prometheus) with the scrape job and the rules of deploy/, and
a load that rises and falls; then sends every panel's query to Prometheus and draws the results with matplotlib. Grafana would
draw the same queries, but is not needed.
"""

import argparse
import asyncio
import contextlib
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import yaml

from benchmarks.servers.process import free_port

mpl.use("Agg")
ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
STEP_SECONDS = 1
WORDS = [
    "tea",
    "steep",
    "water",
    "minute",
    "lock",
    "door",
    "answer",
    "please",
    "help",
    "why",
    "how",
    "safe",
    "question",
    "person",
    "time",
    "leaf",
    "cup",
    "garden",
]
UNITS = {"s": (1000, "ms"), "bytes": (1e-6, "MB"), "percentunit": (100, "%")}


@contextmanager
def started(command: list[str], ready: str, log: Path) -> Iterator[None]:
    """Runs a program while the context lasts; the context begins when `ready` answers 200."""
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT) as process:
        try:
            for _ in range(600):
                if process.poll() is not None:
                    raise RuntimeError(log.read_text())
                try:
                    if httpx.get(ready, trust_env=False).is_success:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            yield
        finally:
            process.terminate()


async def load(url: str, seconds: float) -> None:
    """Sends groups of responses to one prompt in waves every 20 s, with occasional errors and disconnects."""
    rng = random.Random(0)  # noqa: S311 - traffic
    began = time.monotonic()
    room = asyncio.Semaphore(64)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    async def one(client: httpx.AsyncClient, prompt: str) -> None:
        body: dict[str, Any] = {"items": [{"prompt": prompt, "response": text(5, 80)}]}
        if rng.random() < 0.02:
            body["itmes"] = 1
        async with room:
            with contextlib.suppress(httpx.TimeoutException):  # of clients that disconnect
                await client.post("/score", json=body, timeout=0.15 if rng.random() < 0.02 else 600)

    async with (
        httpx.AsyncClient(
            base_url=url, timeout=600, limits=httpx.Limits(max_connections=256), trust_env=False
        ) as client,
        asyncio.TaskGroup() as tasks,
    ):
        while (elapsed := time.monotonic() - began) < seconds:
            async with room:  # no faster than the service answers
                prompt = text(20, 60)
            for _ in range(8):
                tasks.create_task(one(client, prompt))
            if rng.random() < 0.1:
                tasks.create_task(
                    client.post(
                        "/compare", json={"pairs": [{"prompt": prompt, "chosen": text(9, 30), "rejected": text(3, 9)}]}
                    )
                )
            await asyncio.sleep(0.3 + 0.6 * (1 + math.cos(elapsed * math.tau / 20)))


def drawn(
    title: str, panel: dict[str, Any], answers: list[tuple[str, list[dict[str, Any]]]], axes: Any, start: float
) -> None:
    """Draws one panel: lines, a stack, a heat map or a number."""
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    factor, suffix = UNITS.get(unit, (1, {"reqps": "/s", "ops": "/s"}.get(unit, "")))
    is_stat = panel["type"] == "stat"  # shows its unit next to its value, and has little room
    axes.set_title(f"{title} ({suffix})" if suffix and not is_stat else title, fontsize=8 if is_stat else 9, loc="left")
    axes.tick_params(labelsize=7)
    if is_stat:
        axes.axis("off")
        values = [float(each["values"][-1][1]) for _, found in answers for each in found]
        shown = f"{values[0] * factor:.3g}" if values else "no data"
        axes.text(0.5, 0.4, f"{shown} {suffix}", ha="center", va="center", fontsize=18, color="#2f9e44")
        return
    if panel["type"] == "heatmap":
        rows = sorted(answers[0][1], key=lambda each: float(each["metric"]["le"]))
        times = sorted({t for each in rows for t, _ in each["values"]})
        cumulative = np.array([[dict(each["values"]).get(t, "0") for t in times] for each in rows], float)
        counts = np.diff(cumulative, axis=0, prepend=0)
        axes.imshow(
            np.sqrt(np.maximum(counts, 0)),
            aspect="auto",
            origin="lower",
            cmap="Oranges",
            extent=(times[0] - start, times[-1] - start, 0, len(rows)),
        )
        axes.set_yticks(np.arange(len(rows))[1::3] + 1, [each["metric"]["le"] for each in rows][1::3])
        return
    lines = [(legend, each) for legend, found in answers for each in found]
    stacked = panel["fieldConfig"]["defaults"].get("custom", {}).get("stacking", {}).get("mode") == "normal"
    base: dict[float, float] = {}
    for template, each in lines[:10]:
        legend = template
        for name, value in each["metric"].items():
            legend = legend.replace("{{" + name + "}}", value)
        points = [(t, float(v) * factor + (base.get(t, 0.0) if stacked else 0)) for t, v in each["values"]]
        below = [base.get(t, 0.0) for t, _ in points]
        xs, ys = [t - start for t, _ in points], [y for _, y in points]
        axes.plot(xs, ys, linewidth=1, label=legend)
        if stacked:
            axes.fill_between(xs, below, ys, alpha=0.25)
            base |= dict(points)
    if len(lines) > 1 or (lines and lines[0][0]):
        axes.legend(fontsize=6, loc="upper left", framealpha=0.6)
    axes.grid(alpha=0.25)


def draw(url: str, start: float, end: float, out: Path) -> None:
    dashboard = json.loads((DEPLOY / "grafana/dashboards/reward-service.json").read_text(encoding="utf-8"))
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(16, rows * 0.36), layout="compressed")
    grid = figure.add_gridspec(rows, 24)
    for panel in panels:
        at = panel["gridPos"]
        axes = figure.add_subplot(grid[at["y"] : at["y"] + at["h"], at["x"] : at["x"] + at["w"]])
        answers = []
        for target in panel["targets"]:
            expression = (
                target["expr"]
                .replace("$__rate_interval", "10s")
                .replace("$job", "reward-service")
                .replace("$instance", ".+")
            )
            query: dict[str, Any] = {"query": expression, "start": start, "end": end, "step": STEP_SECONDS}
            answer = httpx.get(f"{url}/api/v1/query_range", params=query, trust_env=False).json()
            if answer["status"] != "success":
                raise RuntimeError(f"{panel['title']}: {answer}")
            answers.append((target.get("legendFormat", ""), answer["data"]["result"]))
        drawn(panel["title"], panel, answers, axes, start)
    figure.savefig(out, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=80)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/dashboard.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        service, monitor = free_port(), free_port()
        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": f"{STEP_SECONDS}s", "evaluation_interval": f"{STEP_SECONDS}s"}
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{service}"]}]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        (directory / "scrape-key").write_text("none", encoding="utf-8")
        shutil.copy(DEPLOY / "prometheus/alerts.yml", directory)
        prometheus = [
            shutil.which("prometheus") or "prometheus",
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{monitor}",
        ]
        serve = [str(Path(sys.executable).with_name("reward-service")), "serve", "--port", str(service)]
        with (
            started(serve, f"http://127.0.0.1:{service}/ready", directory / "service.log"),
            started(prometheus, f"http://127.0.0.1:{monitor}/-/ready", directory / "prometheus.log"),
        ):
            start = time.time()
            asyncio.run(load(f"http://127.0.0.1:{service}", options.seconds))
            draw(f"http://127.0.0.1:{monitor}", start + 10, time.time(), options.out)


if __name__ == "__main__":
    main()
