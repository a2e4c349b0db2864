"""The PPO reward tab: takes a batch through selection, logit, whitening and KL to the rewards that PPO receives."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from app.ui import batch, snippets
from app.ui.client import Client
from app.ui.form import Form, code_box
from app.ui.parts import UIContext, file_drop, show_errors
from app.ui.ppo_controls import build_knobs, options_from
from app.ui.ppo_stages import MAX_STRIP_TOKENS, Result, heat, stages
from app.ui.render import render
from app.ui.words import Names


@dataclass(frozen=True, slots=True)
class Row:
    """An item of the batch and its result."""

    prompt: str
    response: str
    is_safety: bool
    result: Result
    is_truncated: bool

    @property
    def is_vetoed(self) -> bool:
        """Whether Llama 2's rule selected the safety score because it is below the threshold, not because of the prompt."""
        return self.result["selected"] == "safety" and not self.is_safety and "parts" not in self.result


def show(
    items: list[batch.Item],
    answer: dict[str, Any],
    options: dict[str, Any],
    *,
    truncated: list[bool],
    made_from: dict[str, Any],
) -> str:
    results: list[Result] = answer["results"]
    rows = [
        Row(*batch.label(item), bool(item.get("is_safety")), r, cut)
        for item, r, cut in zip(items, results, truncated, strict=True)
    ]
    return render(
        "ppo_reward.html",
        rows=rows,
        stages=stages(results, options),
        strips=heat(results),
        max_strip_tokens=MAX_STRIP_TOKENS,
        mean_kl=answer["mean_kl"],
        usage=answer["usage"],
        options=options,
        num_vetoed=sum(row.is_vetoed for row in rows),
        made_from=made_from,
    )


NAMES: Names = [(r"\bitems\[(\d+)\]\.?", lambda found: f"row {int(found[1]) + 1} ")]
"""What the page calls the parts of its request; blank rows at the end of the table are not sent."""


def build(page: gr.Blocks, opened: gr.Tab, client: Client, context: UIContext) -> None:
    """Builds the tab's components; call it inside the tab's context."""
    first_items = batch.example(next(iter(batch.EXAMPLES)))
    with gr.Row(elem_classes="rw-examples"):
        buttons = {name: gr.Button(name, size="sm") for name in batch.EXAMPLES}
    table = gr.Dataframe(
        value=batch.rows_of(first_items),
        headers=batch.HEADERS,
        datatype=batch.TYPES,
        type="array",
        label="Batch: one rollout per row",
        column_widths=["190px", "330px", "84px", "90px", "190px", "190px", "158px"],
        wrap=True,
        max_chars=64,
        interactive=True,
        max_height=320,
        buttons=[],
        elem_id="ppo-table",
    )
    drop = file_drop("Edit the table, drop a JSONL file on it, or", "ppo-drop", "#ppo-table")
    with gr.Accordion("Paste JSONL", open=False):
        jsonl = gr.Textbox(
            label="JSONL", info="One item per line, as in POST /ppo-reward.", lines=3, max_lines=8, elem_id="ppo-jsonl"
        )
        load = gr.Button("Load into the table", size="sm", elem_id="ppo-load")
    with gr.Row(elem_classes="rw-columns"):
        with gr.Column(scale=3, min_width=260, elem_classes="rw-knobs"):
            knobs = build_knobs(context)
            go = gr.Button("Compute rewards", variant="primary", elem_id="ppo-go")
        with gr.Column(scale=10, min_width=320):
            error = gr.HTML(elem_id="ppo-error")
            result = gr.HTML(render("empty.html", title="Computing", text=EMPTY), elem_id="ppo-result")
    code = code_box("ppo")
    known = gr.State(value=None)
    shown = gr.State(value=None)
    form = Form(page, context, "ppo", {"batch": table, **knobs})

    @show_errors(error, result, lambda _: NAMES)
    async def run(rows: list[batch.Row], *settings: Any) -> dict[Any, Any]:
        """Scores the table's items and computes their rewards."""
        items, options = batch.items_of_rows(rows), options_from(settings)
        await context.until_loaded()
        answer = await client.post("/ppo-reward", options | {"items": items})
        truncated = [r["truncated"] for r in answer["results"]]
        made_from = form.made_from((rows, *settings))
        return {
            result: show(items, answer, options, truncated=truncated, made_from=made_from),
            known: {
                "rows": rows,
                "items": items,
                "scored": batch.scored(items, answer["results"]),
                "truncated": truncated,
            },
            shown: (rows, settings),
        }

    async def first(had: dict[str, Any] | None, *values: Any) -> dict[Any, Any]:
        """Computes the batch that the tab begins with, once."""
        return {known: had} if had is not None else await run(*values)

    @show_errors(error, result, lambda _: NAMES)
    async def redraw(had: dict[str, Any] | None, *settings: Any) -> dict[Any, Any]:
        """Computes the rewards again from the same scores with other options; no model runs."""
        if had is None:
            return {error: ""}
        options = options_from(settings)
        answer = await client.post("/ppo-reward", options | {"items": had["scored"]})
        made_from = form.made_from((had["rows"], *settings))
        return {
            result: show(had["items"], answer, options, truncated=had["truncated"], made_from=made_from),
            shown: (had["rows"], settings),
        }

    async def catch_up(had: dict[str, Any] | None, drawn: tuple[Any, ...] | None, *settings: Any) -> dict[Any, Any]:
        """Draws once more where an answer came that was asked for before the controls' last change."""
        if had is None or drawn == (had["rows"], settings):
            return {known: had}
        answer: dict[Any, Any] = await redraw(had, *settings)
        return answer

    @show_errors(error, result)
    async def from_jsonl(text: str) -> dict[Any, Any]:
        return {table: batch.rows_of(batch.items_of_jsonl(text))}

    outputs, asking = [error, result, known, shown], context.asking(result)
    changes = [knob.change for knob in knobs.values()]
    go.click(run, form.components, outputs, **asking)
    opened.select(first, [known, *form.components], outputs, **asking)
    gr.on(changes, redraw, [known, *knobs.values()], outputs, trigger_mode="always_last", **context.quiet)
    result.change(catch_up, [known, shown, *knobs.values()], outputs, trigger_mode="always_last", **context.quiet)
    for loaded in (
        load.click(from_jsonl, jsonl, [table, error, result], **context.quiet),
        drop.upload(from_jsonl, drop, [table, error, result], **context.quiet),
    ):
        loaded.success(run, form.components, outputs, **asking)
    for name, button in buttons.items():
        filled = button.click(partial(from_example, name), outputs=[table, knobs["mode"]], **context.quiet)
        filled.then(run, form.components, outputs, **asking)
    form.follow(code, partial(as_code, context.has_keys))


def from_example(name: str) -> tuple[list[batch.Row], str]:
    """The rows of the example, and what to whiten over."""
    items = batch.example(name)
    return batch.rows_of(items), "group" if all("group_id" in item for item in items) else "batch"


def as_code(has_keys: bool, url: str, rows: list[batch.Row], *settings: Any) -> list[snippets.Snippet]:
    body = options_from(settings) | {"items": batch.items_of_rows(rows)}
    return snippets.request(url, snippets.PPO_REWARD, body, has_key=has_keys)


EMPTY = "The example's rewards are being computed."
