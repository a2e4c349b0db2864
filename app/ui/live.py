"""The Live tab: the service's current activity, from its metrics, updated once per second."""

import math
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import gradio as gr

from app.ui import snippets
from app.ui.client import Client
from app.ui.figures import RECENT_SECONDS, WINDOW_SECONDS, Exposition, Moment, before, between, kept
from app.ui.form import url_of
from app.ui.parts import UIContext, show_errors
from app.ui.plots import Axis, Chart, Line, area, path
from app.ui.render import number, render

REFRESH_SECONDS = 1


def over_time(points: list[tuple[float, float]], kind: str) -> Chart:
    """The path of a filled line over the last minute."""
    x = Axis(-WINDOW_SECONDS, 0, WINDOW_SECONDS / 4)
    y = Axis.over([0.0, max(1.0, *(value for _, value in points))], 3)
    shape = points if len(points) > 1 else [(points[0][0] - 1, points[0][1]), points[0]]
    return Chart(x, y, (Line("", f"{kind} rw-filled", area(x, y, shape)), Line("", kind, path(x, y, shape))))


@dataclass(frozen=True, slots=True)
class Bin:
    words: str
    count: float
    height: float
    label: str


def bins(histogram: list[tuple[float, float]]) -> list[Bin]:
    """The bars of a score histogram: heights in percent of the highest bar, each with its range."""
    fullest = max((count for _, count in histogram), default=0.0) or 1.0
    low, made = -math.inf, []
    for edge, count in histogram:
        words = (
            f"above {number(low, 0)}"
            if math.isinf(edge)
            else f"up to {number(edge, 0)}"
            if math.isinf(low)
            else f"{number(low, 0)} to {number(edge, 0)}"
        )
        made.append(Bin(words, count, round(100 * count / fullest, 2), "" if math.isinf(edge) else number(edge, 0)))
        low = edge
    return made


async def render_status(
    client: Client, context: UIContext, history: list[Moment], at: float
) -> tuple[str, list[Moment]]:
    """The tab's HTML, and the history with the current moment; raises RefusedError if the service returns an error."""
    seen = Exposition(await client.text("/metrics"))
    history = kept(history, Moment.of(seen, at))
    devices = seen.by("reward_queue_items", "device")
    recent = between(before(history, RECENT_SECONDS), history[-1], len(devices))
    minute = between(history[0], history[-1], len(devices))
    tokens = seen.total("reward_tokens_total")
    scored = seen.by("reward_scored_sequences_total", "model")
    speeds = [(b.at - at, between(a, b).tokens_per_second) for a, b in pairwise(history)]
    page = render(
        "live.html",
        seen=seen,
        devices=devices,
        queue_tokens=seen.by("reward_queue_tokens", "device"),
        recent=recent,
        minute=minute,
        shared=1 - seen.total("reward_computed_tokens_total") / tokens if tokens else None,
        cache_tokens=seen.total("reward_prefix_cache_tokens"),
        cache_evictions=seen.total("reward_prefix_cache_evicted_pages_total"),
        scored=scored,
        safety=scored.get("safety", 0.0),
        below=seen.total("reward_safety_below_threshold_total"),
        threshold=context.threshold,
        throughput=over_time(speeds or [(0.0, 0.0)], "plain"),
        queue=over_time([(moment.at - at, moment.queued) for moment in history], "plain"),
        histograms={name: bins(seen.histogram("reward_score", model=name)) for name in scored},
        rejected={code: count for code, count in seen.by("reward_rejected_requests_total", "code").items() if count},
        recent_seconds=RECENT_SECONDS,
    )
    return page, history


def build(page: gr.Blocks, client: Client, context: UIContext) -> gr.Timer:
    """Builds the tab's components and returns its timer; call it inside the tab's context. The timer must run only while the tab is shown."""
    error = gr.HTML(elem_id="live-error")
    result = gr.HTML(render("empty.html", title="Live figures", text="Waiting for the first."), elem_id="live-result")
    code = gr.HTML(elem_id="live-code")
    history = gr.State(value=[])
    timer = gr.Timer(REFRESH_SECONDS, active=False)

    @show_errors(error, result)
    async def tick(moments: list[Moment]) -> dict[Any, Any]:
        page, kept_moments = await render_status(client, context, moments, time.monotonic())
        return {result: page, history: kept_moments}

    def as_code(request: gr.Request) -> str:
        found = snippets.metrics(url_of(request), has_key=context.has_keys)
        return render("code.html", snippets=found, message="", made_from=None)

    page.load(as_code, None, code, **context.quiet)
    timer.tick(tick, history, [error, result, history], **context.quiet)
    return timer
