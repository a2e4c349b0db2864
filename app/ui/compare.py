"""The Compare tab: two responses and a rating on the curve of the margin ranking loss, L = -log sigmoid(d - m)."""

import math
from typing import Any

import gradio as gr

from app.shaping import MARGINS, MarginScheme
from app.ui.client import Client
from app.ui.parts import Board, explained
from app.ui.plots import Axis, Chart, Dot, Line, Rule, path
from app.ui.render import number, render

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
REACH = 1.5
"""How far the drawn curve goes beyond the pair and the margins."""


def loss(difference: float, margin: float) -> float:
    """-log sigmoid(d - m), without overflow: log(1 + exp(m - d))."""
    x = margin - difference
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def curve(result: dict[str, Any], scheme: MarginScheme) -> Chart:
    """The pair on its two curves, without and with its margin, among those of the scheme's other ratings."""
    difference, margin = result["chosen_score"] - result["rejected_score"], result["margin"]
    margins = sorted({0.0, margin, *MARGINS[scheme].values()})
    reach = max(3.0, abs(difference), margin) + REACH
    x = Axis.over([-reach, reach], 6)
    grid = [x.low + (x.high - x.low) * i / (NUM_POINTS - 1) for i in range(NUM_POINTS)]
    y = Axis.over([0.0, loss(x.low, margins[-1])])
    drawn = {m: path(x, y, [(d, loss(d, m)) for d in grid]) for m in margins}
    lines = [Line(f"margin {m:g}", "other", drawn[m]) for m in margins if m not in {0.0, margin}]
    lines.append(Line("without margin", "plain", drawn[0.0]))
    dots = [Dot(x.at(difference), y.at(result["loss"]), number(result["loss"]), "plain")]
    if margin:
        lines.append(Line("with margin", "with", drawn[margin]))
        dots.append(Dot(x.at(difference), y.at(result["loss_with_margin"]), number(result["loss_with_margin"]), "with"))
    return Chart(x, y, tuple(lines), moments=(Rule(x.at(difference), "", "start"),), dots=tuple(dots))


async def compare(client: Client, pair: dict[str, Any], model: str, scheme: MarginScheme) -> str:
    """The result's HTML; raises RefusedError."""
    answer = await client.post("/compare", {"pairs": [pair], "model": model, "margin_scheme": scheme})
    result = answer["results"][0]
    scores = Axis.over([0.0, result["chosen_score"], result["rejected_score"]])
    return render(
        "compare.html",
        result=result,
        difference=result["chosen_score"] - result["rejected_score"],
        model=model,
        scheme=scheme,
        rating=RATINGS.get(pair.get("rating", ""), ""),
        margins=MARGINS[scheme],
        ratings=RATINGS,
        scores=scores,
        chart=curve(result, scheme),
        usage=answer["usage"],
    )


def build(client: Client, board: Board) -> None:
    """Lays the tab out; to be called inside it."""
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
                model = gr.Radio(["helpfulness", "safety"], value="helpfulness", label="Model", elem_id="compare-model")
            go = gr.Button("Compare", variant="primary", elem_id="compare-go")
            error = gr.HTML(elem_id="compare-error")
        with gr.Column(scale=7, min_width=320):
            result = gr.HTML(render("empty.html", title="Nothing compared yet", text=EMPTY), elem_id="compare-result")
    compared = gr.State(value=False)

    @explained(error, result)
    async def run(*values: Any) -> dict[Any, Any]:
        asked, better, worse, rated, margins, by = values
        pair = {"prompt": asked, "chosen": better, "rejected": worse} | ({"rating": rated} if rated else {})
        return {result: await compare(client, pair, by, margins), compared: True}

    async def again(has_result: bool, *values: Any) -> dict[Any, Any]:
        """A choice that changes after a comparison compares anew."""
        return await run(*values) if has_result else {compared: False}

    inputs = [prompt, chosen, rejected, rating, scheme, model]
    gr.on(
        [go.click, prompt.submit, chosen.submit, rejected.submit],
        run,
        inputs,
        [error, result, compared],
        **board.asking(result),
    )
    gr.on(
        [rating.change, scheme.change, model.change],
        again,
        [compared, *inputs],
        [error, result, compared],
        **board.quiet,
    )
    swap.click(None, [chosen, rejected], [chosen, rejected], js="(a, b) => [b, a]", **board.quiet)


EMPTY = "Write two responses to one prompt, say how much better the first is, and press Compare."
