"""The PPO reward tab: a batch through selection, logit, whitening and KL, to what PPO receives for each token."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.ui import batch, snippets
from app.ui.client import Client
from app.ui.parts import Board, explained
from app.ui.plots import Axis, span
from app.ui.render import MINUS, TIMES, render

MAX_BETA = 0.5
MAX_STRIP_TOKENS = 400
"""Cells of one item's strip; a rollout of thousands would make the page slow and the cells too thin to see."""

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """An item of the batch and what became of it."""

    prompt: str
    response: str
    is_safety: bool
    result: Result
    is_truncated: bool

    @property
    def is_vetoed(self) -> bool:
        """Whether the safety score was taken for being low, and not for the prompt's sake."""
        return self.result["selected"] == "safety" and not self.is_safety


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a stage: where its bar begins, how wide it is, and the value that stands beside it."""

    left: float
    width: float
    value: float
    kind: str
    from_before: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    title: str
    says: str
    name: str
    axis: Axis
    bars: tuple[Bar, ...]
    threshold: float | None = None

    @property
    def zero(self) -> float:
        return self.axis.clamped(0.0)


def stages(results: list[Result], threshold: float, beta: float) -> list[Stage]:
    """The four steps from scores to rewards, with a bar an item each."""

    def over(name: str) -> Axis:
        return Axis.over([0.0, *(result[name] for result in results)], 3)

    def bars(axis: Axis, name: str, kind: Callable[[Result], str]) -> tuple[Bar, ...]:
        return tuple(Bar(*span(axis, 0.0, r[name]), r[name], kind(r)) for r in results)

    def selected(result: Result) -> str:
        return str(result["selected"])

    def penalized(result: Result) -> str:
        return "plus" if result["reward"] >= 0 else "minus"

    unit = Axis(0.0, 1.0, 0.5)
    safe = [(sigmoid(result["safety_score"]), str(result["selected"])) for result in results]
    whitened = Axis.over([0.0, *(result[name] for result in results for name in ("whitened", "reward"))], 3)
    rewards = tuple(
        Bar(*span(whitened, 0.0, r["reward"]), r["reward"], penalized(r), span(whitened, r["whitened"], r["reward"]))
        for r in results
    )
    return [
        Stage(
            "1  Selection",
            f"probability by the safety model; its score is taken below {threshold:g}, or for a safety prompt",
            "safety_probability",
            unit,
            tuple(Bar(*span(unit, 0.0, value), value, kind) for value, kind in safe),
            threshold,
        ),
        Stage(
            "2  Logit",
            "of the probability selected: the score itself",
            "shaped_score",
            over("shaped_score"),
            bars(over("shaped_score"), "shaped_score", selected),
        ),
        Stage(
            "3  Whitening",
            "mean 0 and variance 1 over the batch, or over each group",
            "whitened",
            whitened,
            bars(whitened, "whitened", selected),
        ),
        Stage(
            "4  Reward",
            f"whitened {MINUS} {beta:g} {TIMES} KL; the hatched part is the penalty",
            "reward",
            whitened,
            rewards,
        ),
    ]


def sigmoid(score: float) -> float:
    return 0.5 * (1 + math.tanh(score / 2))


@dataclass(frozen=True, slots=True)
class Cell:
    value: float
    shade: float
    """From -1 to 1 of the largest penalty in the batch; the last token's also has the score, and is marked."""
    is_last: bool


def heat(results: list[Result], whitened: str = "whitened") -> list[list[Cell]]:
    """A cell a token of each item that has token rewards."""
    strips: list[list[Cell]] = []
    for result in results:
        rewards = (result["token_rewards"] or [])[:MAX_STRIP_TOKENS]
        full = result["token_rewards"] or []
        last = max((i for i, value in enumerate(full) if value != 0), default=-1)
        parts = [value - result[whitened] if i == last else value for i, value in enumerate(rewards)]
        strips.append(
            [Cell(value, part, i == last) for i, (value, part) in enumerate(zip(rewards, parts, strict=True))]
        )
    largest = max((abs(cell.shade) for strip in strips for cell in strip), default=0.0) or 1.0
    return [[Cell(cell.value, round(cell.shade / largest, 3), cell.is_last) for cell in strip] for strip in strips]


def show(items: list[batch.Item], answer: dict[str, Any], options: dict[str, Any], *, truncated: list[bool]) -> str:
    results: list[Result] = answer["results"]
    threshold = options["safety_threshold"]
    rows = [
        Row(*batch.label(item), bool(item.get("is_safety")), r, cut)
        for item, r, cut in zip(items, results, truncated, strict=True)
    ]
    return render(
        "ppo_reward.html",
        rows=rows,
        stages=stages(results, threshold, options["beta"]),
        strips=heat(results),
        max_strip_tokens=MAX_STRIP_TOKENS,
        answer=answer,
        options=options,
        num_vetoed=sum(row.is_vetoed for row in rows),
    )


def options_of(beta: float, threshold: float, mode: str, estimator: str) -> dict[str, Any]:
    return {
        "beta": beta,
        "safety_threshold": threshold,
        "whiten": {"mode": mode},
        "kl": {"estimator": estimator},
        "token_rewards": True,
    }


def url_of(request: gr.Request) -> str:
    """Where the browser found the service."""
    return str(request.request.base_url).rstrip("/").removesuffix("/ui")


def build(client: Client, board: Board) -> None:
    """Lays the tab out; to be called inside it."""
    first = batch.example(next(iter(batch.EXAMPLES)))
    with gr.Row(elem_classes="rw-examples"):
        buttons = {name: gr.Button(name, size="sm") for name in batch.EXAMPLES}
    table = gr.Dataframe(
        value=batch.rows_of(first),
        headers=batch.HEADERS,
        datatype=batch.TYPES,
        type="array",
        label="Batch: one rollout a row",
        column_widths=["190px", "330px", "84px", "90px", "190px", "190px", "158px"],
        wrap=True,
        max_chars=64,
        interactive=True,
        max_height=420,
        buttons=[],
        elem_id="ppo-table",
    )
    with gr.Accordion("Or a JSONL file", open=False, elem_id="ppo-drop"):
        gr.HTML(render("drop.html"))
        jsonl = gr.Textbox(
            label="JSONL", info="One item a line, as in POST /ppo-reward.", lines=3, max_lines=8, elem_id="ppo-jsonl"
        )
        load = gr.Button("Load into the table", size="sm", elem_id="ppo-load")
    with gr.Row():
        beta = gr.Slider(
            0,
            max(MAX_BETA, board.beta),
            value=board.beta,
            step=0.005,
            label="beta",
            info="The KL penalty's weight.",
            elem_id="ppo-beta",
        )
        threshold = gr.Slider(
            0.01,
            0.99,
            value=board.threshold,
            step=0.01,
            label="Safety threshold",
            info="Veto below it.",
            elem_id="ppo-threshold",
        )
        mode = gr.Radio(["batch", "group", "none"], value="batch", label="Whiten over", elem_id="ppo-mode")
        estimator = gr.Radio(["k1", "k2", "k3"], value="k1", label="KL estimator", elem_id="ppo-estimator")
    go = gr.Button("Compute rewards", variant="primary", elem_id="ppo-go")
    error = gr.HTML(elem_id="ppo-error")
    result = gr.HTML(render("empty.html", title="No rewards yet", text=EMPTY), elem_id="ppo-result")
    code = gr.HTML(elem_id="ppo-code")
    known = gr.State(value=None)

    def as_code(items: list[batch.Item], options: dict[str, Any], request: gr.Request) -> str:
        url = url_of(request)
        return render(
            "code.html",
            curl=snippets.curl(url, "/ppo-reward", options | {"items": items}, has_key=board.has_keys),
            python=snippets.python(url, items, options, has_key=board.has_keys),
        )

    @explained(error, result)
    async def run(
        rows: list[batch.Row], weight: float, limit: float, over: str, kl: str, request: gr.Request
    ) -> dict[Any, Any]:
        """Scores the table's items and computes their rewards."""
        items, options = batch.items_of_rows(rows), options_of(weight, limit, over, kl)
        answer = await client.post("/ppo-reward", options | {"items": items})
        truncated = [r["truncated"] for r in answer["results"]]
        return {
            result: show(items, answer, options, truncated=truncated),
            known: {"items": items, "scored": batch.scored(items, answer["results"]), "truncated": truncated},
            code: as_code(items, options, request),
        }

    @explained(error, result)
    async def redraw(
        had: dict[str, Any] | None, weight: float, limit: float, over: str, kl: str, request: gr.Request
    ) -> dict[Any, Any]:
        """The same scores under other options: no model runs."""
        if had is None:
            return {error: ""}
        options = options_of(weight, limit, over, kl)
        answer = await client.post("/ppo-reward", options | {"items": had["scored"]})
        drawn = show(had["items"], answer, options, truncated=had["truncated"])
        return {result: drawn, code: as_code(had["items"], options, request)}

    @explained(error, result)
    async def from_jsonl(text: str) -> dict[Any, Any]:
        return {
            table: batch.rows_of(batch.items_of_jsonl(text)),
            result: READY,
            known: None,
            code: "",
        }

    def from_example(name: str) -> dict[Any, Any]:
        items = batch.example(name)
        grouped = "group" if all("group_id" in item for item in items) else "batch"
        return {
            table: batch.rows_of(items),
            mode: grouped,
            error: "",
            result: READY,
            known: None,
            code: "",
        }

    knobs = [beta, threshold, mode, estimator]
    outputs = [error, result, known, code]
    go.click(run, [table, *knobs], outputs, **board.asking(result))
    gr.on([knob.change for knob in knobs], redraw, [known, *knobs], outputs, trigger_mode="always_last", **board.quiet)
    load.click(from_jsonl, jsonl, [table, *outputs], **board.quiet)
    for name, button in buttons.items():
        button.click(lambda name=name: from_example(name), outputs=[table, mode, *outputs], **board.quiet)


EMPTY = "Edit the table, take an example, or load a JSONL file, and press Compute rewards."
READY = render("empty.html", title="Loaded", text="Press Compute rewards.")
