"""The Evaluate tab: preference pairs as JSONL, and how well a model ranks them. The figures are app.training's."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from app.errors import InvalidInputError
from app.files.jsonl import json_lines
from app.training.evaluation import Evaluation, Result
from app.training.pairs import PairLine, pairs_of
from app.ui import snippets
from app.ui.client import Client, RefusedError
from app.ui.evaluation_view import report
from app.ui.form import Form, code_box
from app.ui.parts import UIContext, file_drop, show_errors
from app.ui.words import Names

EXAMPLE = Path(__file__).parent / "examples" / "pairs.jsonl"
PAIRS_PER_REQUEST = 16
NAMES: Names = [(r"^pairs line", "line"), (r"^pairs has no lines", "there are no pairs")]
"""`pairs` is the file's name in the errors of the reader."""
COLUMNS = ("line", "prompt", "chosen", "rejected", "rating", "subset")
FIGURES = ("chosen_score", "rejected_score", "probability", "margin", "loss", "loss_with_margin", "correct")


def pairs_in(text: str) -> tuple[list[PairLine], list[str]]:
    """The pairs, and notes on ignored fields; raises InvalidInputError that names the line."""
    if not text.strip():
        raise InvalidInputError("There are no pairs. Drop a JSONL file, or paste one pair per line.")
    found = pairs_of("pairs", json_lines("pairs", text.encode().splitlines()))
    return found.lines, found.notes


async def results_of(
    client: Client, lines: Sequence[PairLine], options: dict[str, Any], progress: gr.Progress
) -> list[Result]:
    """The results of POST /compare, in order; raises RefusedError that names the line."""
    results: list[Result] = []
    for start in range(0, len(lines), PAIRS_PER_REQUEST):
        chunk = lines[start : start + PAIRS_PER_REQUEST]
        progress((len(results), len(lines)), unit="pairs")
        pairs = [line.pair.model_dump(mode="json", exclude_none=True) for line in chunk]
        try:
            answer = await client.post("/compare", options | {"pairs": pairs})
        except RefusedError as error:
            numbers = [line.number for line in chunk]
            message = re.sub(r"\bpairs\[(\d+)\]", lambda found: f"line {numbers[int(found[1])]}", error.message)  # noqa: B023
            raise RefusedError(error.status, error.code, message) from None
        results.extend(answer["results"])
    return results


def as_csv(lines: Sequence[PairLine], results: Sequence[Result]) -> str:
    """One row per pair, with its texts, scores and losses."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([*COLUMNS, *FIGURES])
    for line, result in zip(lines, results, strict=True):
        texts = [line.number, prompt_of(line), *line.responses, line.pair.rating or "", line.subset or ""]
        writer.writerow([*texts, *(result[name] for name in FIGURES)])
    return out.getvalue()


def prompt_of(line: PairLine) -> str:
    """The prompt; for conversations, the last turn before the response."""
    turns = line.pair.chosen_messages
    if turns is None:
        return line.pair.prompt or ""
    return (turns[-2].content or "") if len(turns) > 1 else ""


def build(page: gr.Blocks, opened: gr.Tab, client: Client, context: UIContext) -> None:
    """Builds the tab's components; call it inside the tab's context."""
    names = context.model_choices
    with gr.Row(elem_classes="rw-columns"):
        with gr.Column(scale=4, min_width=300):
            pairs = gr.Textbox(
                label="Preference pairs",
                info="JSONL: prompt, chosen, rejected, and a rating or a margin where there is one.",
                value=EXAMPLE.read_text(encoding="utf-8"),
                lines=10,
                max_lines=14,
                elem_id="evaluate-pairs",
            )
            drop = file_drop("Drop a JSONL file on the field, or", "evaluate-drop", "#evaluate-pairs")
            model = gr.Radio(names, value=names[0], label="Model", elem_id="evaluate-model")
            scheme = gr.Radio(["large", "small"], value="large", label="Margins", elem_id="evaluate-scheme")
            go = gr.Button("Evaluate", variant="primary", elem_id="evaluate-go")
        with gr.Column(scale=8, min_width=320):
            error = gr.HTML(elem_id="evaluate-error")
            result = gr.HTML(elem_id="evaluate-result")
    code = code_box("evaluate")
    evaluated = gr.State(value=False)
    form = Form(page, context, "evaluate", {"pairs": pairs, "model": model, "scheme": scheme})

    @show_errors(error, result, lambda _: NAMES)
    async def run(text: str, name: str, margins: str, progress: gr.Progress = gr.Progress()) -> dict[Any, Any]:  # noqa: B008 - how Gradio passes it
        await context.until_loaded()
        lines, notes = pairs_in(text)
        results = await results_of(client, lines, {"model": name, "margin_scheme": margins}, progress)
        html = report(
            Evaluation(lines, results),
            name,
            notes=notes,
            prompts=[prompt_of(line) for line in lines],
            table=as_csv(lines, results),
            made_from=form.made_from((text, name, margins)),
        )
        return {result: html, evaluated: True}

    @show_errors(error, result, lambda _: NAMES)
    async def first(
        has_result: bool,
        text: str,
        name: str,
        margins: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> dict[Any, Any]:
        """Evaluates the pairs that the tab begins with, once."""
        return {evaluated: True} if has_result else await run(text, name, margins, progress)

    def as_code(url: str, _: str, name: str, margins: str) -> list[snippets.Snippet]:
        return snippets.evaluate(url, name, margins, has_key=context.has_keys)

    outputs = [error, result, evaluated]
    asking = context.asking(result) | {"show_progress": "full"}
    go.click(run, form.components, outputs, **asking)
    opened.select(first, [evaluated, *form.components], outputs, **asking)
    dropped = drop.upload(None, drop, pairs, js="(text) => text", **context.quiet)
    dropped.then(run, form.components, outputs, **asking)
    form.follow(code, as_code)
