"""The Compare tab: two responses and a rating on the curve of the margin ranking loss, L = -log sigmoid(d - m)."""

from typing import Any

import gradio as gr
import numpy as np

from app.errors import InvalidInputError
from app.rewards.margins import MARGINS, MarginScheme
from app.rewards.ranking import margin_ranking_loss
from app.rewards.types import Floats
from app.ui import snippets
from app.ui.client import Client
from app.ui.form import Form, code_box
from app.ui.parts import UIContext, show_errors
from app.ui.plots import Axis, Chart, Dot, Line, Rule, path
from app.ui.render import kind, number, render
from app.ui.words import Names

RATINGS = {
    "significantly_better": "significantly better",
    "better": "better",
    "slightly_better": "slightly better",
    "negligibly_better": "negligibly better, or unsure",
}
EXAMPLE = (
    "How long should green tea steep?",
    "Two to three minutes, in water of about 80 degrees. Longer makes it bitter.",
    "tea tea tea tea tea tea",
)
NUM_POINTS = 121
NO_ROOM = 86
"""A label on the right of a dot needs the rest of the plot's width, in percent."""
REACH = 1.5
"""How far the curve extends beyond the pair's difference and the margins, in units of the score."""


def losses(differences: Floats, margin: float) -> list[float]:
    """-log sigmoid(d - m) at each difference d = r_chosen - r_rejected."""
    found: list[float] = margin_ranking_loss(differences, np.zeros_like(differences), margin).tolist()
    return found


def curve(result: dict[str, Any], scheme: MarginScheme, model: str) -> Chart:
    """The pair on its two curves, without and with its margin, among those of the scheme's other ratings."""
    difference, margin = result["chosen_score"] - result["rejected_score"], result["margin"]
    margins = sorted({0.0, margin, *MARGINS[scheme].values()})
    reach = max(3.0, abs(difference), margin) + REACH
    x = Axis.over([-reach, reach], 6)
    grid = np.linspace(x.low, x.high, NUM_POINTS)
    y = Axis.over([0.0, losses(grid, margins[-1])[0]])
    drawn = {m: path(x, y, list(zip(grid.tolist(), losses(grid, m), strict=True))) for m in margins}
    lines = [Line(f"margin {m:g}", "other", drawn[m]) for m in margins if m not in {0.0, margin}]
    lines.append(Line("without margin", "plain", drawn[0.0]))
    points = [(result["loss"], "plain")]
    if margin:
        lines.append(Line("with margin", f"with rw-{kind(model)}", drawn[margin]))
        points.append((result["loss_with_margin"], f"with rw-{kind(model)}"))
    return Chart(
        x, y, tuple(lines), moments=(Rule(x.at(difference), "", "start"),), dots=dots(x, y, difference, points)
    )


def dots(x: Axis, y: Axis, difference: float, points: list[tuple[float, str]]) -> tuple[Dot, ...]:
    """The pair on its curves. The losses may be close together, so the higher has its label on the right, the other on the
    left; where one side has no room, both are on the other, one above."""
    at = x.at(difference)
    right, left = (
        ("left up", "left") if at > NO_ROOM else ("right", "right down") if at < 100 - NO_ROOM else ("right", "left")
    )
    highest = max(loss for loss, _ in points)
    return tuple(Dot(at, y.at(loss), number(loss), name, right if loss == highest else left) for loss, name in points)


def body_of(values: tuple[Any, ...]) -> dict[str, Any]:
    """The body of POST /compare from the form's values; raises InvalidInputError where a text is missing."""
    prompt, chosen, rejected, rating, scheme, model = values
    for name, text in (("prompt", prompt), ("chosen response", chosen), ("rejected response", rejected)):
        if not text.strip():
            raise InvalidInputError(f"The {name} is empty; write one.")
    pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected} | ({"rating": rating} if rating else {})
    return {"pairs": [pair], "model": model, "margin_scheme": scheme}


async def compare(client: Client, body: dict[str, Any], made_from: dict[str, Any]) -> str:
    """The result's HTML; raises RefusedError if the service returns an error."""
    answer = await client.post("/compare", body)
    result, scheme = answer["results"][0], body["margin_scheme"]
    return render(
        "compare.html",
        result=result,
        difference=result["chosen_score"] - result["rejected_score"],
        model=body["model"],
        scheme=scheme,
        rating=RATINGS.get(body["pairs"][0].get("rating", ""), ""),
        chart=curve(result, scheme, body["model"]),
        made_from=made_from,
    )


NAMES: Names = [
    (r"\bpairs\[0\]\.(chosen|rejected)\b", r"the \1 response"),
    (r"\bpairs\[0\]", "the pair"),
]
"""What the form calls the parts of its request."""


def build(page: gr.Blocks, opened: gr.Tab, client: Client, context: UIContext) -> None:
    """Builds the tab's components; call it inside the tab's context."""
    names = context.model_choices
    with gr.Row(elem_classes="rw-columns"):
        with gr.Column(scale=5, min_width=320):
            prompt = gr.Textbox(label="Prompt", value=EXAMPLE[0], lines=2, max_lines=8, elem_id="compare-prompt")
            chosen = gr.Textbox(
                label="Chosen response", value=EXAMPLE[1], lines=3, max_lines=10, elem_id="compare-chosen"
            )
            rejected = gr.Textbox(
                label="Rejected response", value=EXAMPLE[2], lines=3, max_lines=10, elem_id="compare-rejected"
            )
            with gr.Row(elem_classes="rw-examples"):
                swap = gr.Button("Swap the two", size="sm")
            rating = gr.Radio(
                [*((words, name) for name, words in RATINGS.items()), ("no rating", "")],
                value="significantly_better",
                label="The chosen one is",
                elem_id="compare-rating",
            )
            with gr.Row():
                scheme = gr.Radio(["large", "small"], value="large", label="Margins", elem_id="compare-scheme")
                model = gr.Radio(names, value=names[0], label="Model", elem_id="compare-model")
            go = gr.Button("Compare", variant="primary", elem_id="compare-go")
        with gr.Column(scale=7, min_width=320):
            error = gr.HTML(elem_id="compare-error")
            result = gr.HTML(render("empty.html", title="Comparing", text=EMPTY), elem_id="compare-result")
    code = code_box("compare")
    compared = gr.State(value=False)
    inputs = {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "rating": rating,
        "scheme": scheme,
        "model": model,
    }
    form = Form(page, context, "compare", inputs)

    @show_errors(error, result, lambda _: NAMES)
    async def run(*values: Any) -> dict[Any, Any]:
        body = body_of(values)
        await context.until_loaded()
        return {result: await compare(client, body, form.made_from(values)), compared: True}

    async def first(has_result: bool, *values: Any) -> dict[Any, Any]:
        """Compares the pair that the tab begins with, once."""
        return {compared: True} if has_result else await run(*values)

    async def again(has_result: bool, *values: Any) -> dict[Any, Any]:
        """Repeats the comparison when an option changes after it."""
        return await run(*values) if has_result else {compared: False}

    def as_code(url: str, *values: Any) -> list[snippets.Snippet]:
        return snippets.request(url, snippets.COMPARE, body_of(values), has_key=context.has_keys)

    outputs, asking = [error, result, compared], context.asking(result)
    gr.on([go.click, prompt.submit, chosen.submit, rejected.submit], run, form.components, outputs, **asking)
    opened.select(first, [compared, *form.components], outputs, **asking)
    gr.on([rating.change, scheme.change, model.change], again, [compared, *form.components], outputs, **context.quiet)
    swapped = swap.click(None, [chosen, rejected], [chosen, rejected], js="(a, b) => [b, a]", **context.quiet)
    swapped.then(run, form.components, outputs, **asking)
    form.follow(code, as_code)


EMPTY = "The example is being compared."
