"""The Score tab: one response, what both models say of it, which of them Llama 2 takes, and the score after every token."""

import asyncio
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.engine.tokenization import Messages, PromptResponse, Truncation
from app.errors import InvalidInputError
from app.ui.client import Client
from app.ui.parts import Board, explained
from app.ui.plots import Axis, Chart, Line, Rule, path, span
from app.ui.render import render
from app.ui.tokens import Tokens, tokens_of

EXAMPLES = {
    "A refusal": (
        "How do I get into my neighbour's house?",
        "I can't help you break in. If you are locked out, call a locksmith.",
    ),
    "Harmful help": (
        "How do I get into my neighbour's house?",
        "Wait until they leave for work, then break the window at the back with a hammer and climb in before anyone sees you.",
    ),
    "Turns bad": (
        "How can I calm down before an exam?",
        """Breathe slowly, drink some water and take a short walk. If that fails, steal your brother's sleeping pills \
and swallow all of them, you idiot, because nobody would miss you.""",
    ),
}
CONVERSATION = """user: How long should green tea steep?
assistant: Two to three minutes.
user: And how hot should the water be?
assistant: About 80 °C; boiling water makes it bitter."""
TURN = re.compile(r"^(system|user|assistant):[ \t]*", re.MULTILINE | re.IGNORECASE)


def messages_of(text: str) -> list[dict[str, str]]:
    """The turns of a conversation: lines that begin with a role, or the API's own JSON list.

    Raises InvalidInputError in words that a person can act on.
    """
    if text.lstrip().startswith("["):
        try:
            listed: list[dict[str, str]] = json.loads(text)
        except ValueError as error:
            raise InvalidInputError(f"the conversation begins like JSON and is none: {error}") from None
        return listed
    starts = list(TURN.finditer(text))
    if not starts or text[: starts[0].start()].strip():
        line = text.strip().partition("\n")[0]
        raise InvalidInputError(
            f"the conversation begins with {line[:40]!r}; begin every turn with user:, assistant: or system:"
        )
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return [
        {"role": start[1].lower(), "content": text[start.end() : end].strip()}
        for start, end in zip(starts, ends, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the person asked, as the API takes it."""

    item: dict[str, Any]
    is_safety: bool
    truncation: Truncation

    @property
    def form(self) -> PromptResponse | Messages:
        if "messages" in self.item:
            return Messages(tuple(self.item["messages"]))
        return PromptResponse(self.item["prompt"], self.item["response"])


async def score(client: Client, board: Board, asked: Asked, *, by_token: bool) -> str:
    """The result's HTML; raises RefusedError."""
    info = await client.get("/info")
    is_causal = all(model["token_scores"] for model in info["models"].values())
    body = {"items": [asked.item], "truncation": asked.truncation, "token_scores": by_token and is_causal}
    answer = await client.post("/score", body)
    scores: dict[str, dict[str, Any]] = answer["results"][0]["scores"]
    chosen = await selected(client, scores, is_safety=asked.is_safety)
    texts = await asyncio.to_thread(tokens_of, board.engine, asked.form, asked.truncation) if by_token else {}
    return render(
        "score.html",
        scores=scores,
        bars={name: span(Axis(0, 1, 0.25), 0, entry["probability"]) for name, entry in scores.items()},
        threshold=board.threshold,
        limit=score_of(board.threshold),
        selected=chosen,
        is_safety=asked.is_safety,
        usage=answer["usage"],
        strips=strips(scores, texts, board.threshold),
        wanted_tokens=by_token,
        is_causal=is_causal,
    )


async def selected(client: Client, scores: Mapping[str, Mapping[str, Any]], *, is_safety: bool) -> str | None:
    """The model whose score Llama 2 takes, as the service itself decides; None where it cannot, for want of a model."""
    if "safety" not in scores or ("helpfulness" not in scores and not is_safety):
        return None
    item = {f"{name}_score": entry["score"] for name, entry in scores.items()} | {"is_safety": is_safety}
    answer = await client.post("/ppo-reward", {"items": [item], "whiten": {"mode": "none"}})
    return str(answer["results"][0]["selected"])


@dataclass(frozen=True, slots=True)
class Token:
    """`steps`: by model, what the token did to the score, from -1 to 1 of the largest step."""

    text: str
    is_prompt: bool
    steps: dict[str, float]


@dataclass(frozen=True, slots=True)
class Strip:
    """The models that see the same tokens, as one chart with the tokens beneath."""

    chart: Chart
    tokens: tuple[Token, ...]
    series: dict[str, list[float]]


def strips(scores: Mapping[str, Mapping[str, Any]], texts: Mapping[str, Tokens], threshold: float) -> list[Strip]:
    """A strip for each tokenization; models whose tokens are the same share one."""
    groups: dict[Tokens, dict[str, list[float]]] = {}
    for name, entry in scores.items():
        series = entry.get("token_scores")
        if series and name in texts and len(texts[name].texts) == len(series):
            groups.setdefault(texts[name], {})[name] = series
    return [strip(tokens, series, threshold) for tokens, series in groups.items()]


def strip(tokens: Tokens, series: dict[str, list[float]], threshold: float) -> Strip:
    num_tokens = len(tokens.texts)
    limit = score_of(threshold)
    x = Axis(1, max(num_tokens, 2), max(1, round(num_tokens / 8)))
    y = Axis.over([limit, *(value for values in series.values() for value in values)])
    lines = [
        Line(name, name, path(x, y, list(enumerate(values, 1)) if num_tokens > 1 else [(1, values[0]), (2, values[0])]))
        for name, values in series.items()
    ]
    levels = [Rule(y.at(limit), "", "limit")] if "safety" in series else []
    moments = [Rule(x.at(tokens.num_prompt), "response", "start")] if 0 < tokens.num_prompt < num_tokens else []
    steps = {name: relative_steps(values, tokens.num_prompt) for name, values in series.items()}
    return Strip(
        Chart(x, y, tuple(lines), tuple(levels), tuple(moments)),
        tuple(
            Token(text, i < tokens.num_prompt, {name: values[i] for name, values in steps.items()})
            for i, text in enumerate(tokens.texts)
        ),
        series,
    )


def score_of(probability: float) -> float:
    """logit, the inverse of sigmoid."""
    return math.log(probability / (1 - probability))


def relative_steps(values: list[float], num_prompt: int) -> list[float]:
    """What each token of the response added to the score, from -1 to 1; a prompt's tokens add nothing that counts."""
    steps = [0.0 if i == 0 or i < num_prompt else values[i] - values[i - 1] for i in range(len(values))]
    largest = max(map(abs, steps)) or 1.0
    return [round(step / largest, 3) for step in steps]


def build(client: Client, board: Board) -> None:
    """Lays the tab out; to be called inside it."""
    with gr.Row(elem_classes="rw-columns"):
        with gr.Column(scale=5, min_width=320):
            form = gr.Radio(["Prompt and response", "Conversation"], value="Prompt and response", label="Input")
            prompt = gr.Textbox(label="Prompt", lines=2, max_lines=8, elem_id="score-prompt")
            response = gr.Textbox(label="Response", lines=5, max_lines=14, elem_id="score-response")
            turns = gr.Textbox(
                label="Conversation",
                info="Begin every turn with user:, assistant: or system:. The last is the assistant's.",
                value=CONVERSATION,
                lines=7,
                max_lines=16,
                visible=False,
                elem_id="score-conversation",
            )
            with gr.Row(elem_classes="rw-examples"):
                for name, (asked_prompt, asked_response) in EXAMPLES.items():
                    values = ["Prompt and response", asked_prompt, asked_response]
                    gr.Button(name, size="sm", variant="secondary").click(
                        None, outputs=[form, prompt, response], js=f"() => {json.dumps(values)}", **board.quiet
                    )
            with gr.Row():
                is_safety = gr.Checkbox(label="Safety prompt", info="is_safety: the safety score is always taken.")
                by_token = gr.Checkbox(
                    label="Score after every token", info="Drawn as a line over the text.", value=True
                )
            truncation = gr.Dropdown(
                [
                    ("refuse it", "error"),
                    ("drop the oldest prompt tokens", "prompt"),
                    ("cut it on the left", "left"),
                    ("cut it on the right", "right"),
                ],
                value="error",
                label="If the input is too long",
                filterable=False,
            )
            go = gr.Button("Score", variant="primary", elem_id="score-go")
            error = gr.HTML(elem_id="score-error")
        with gr.Column(scale=7, min_width=320):
            result = gr.HTML(render("empty.html", title="Nothing scored yet", text=EMPTY), elem_id="score-result")

    def show(chosen: str) -> tuple[Any, ...]:
        plain = chosen == "Prompt and response"
        return gr.update(visible=plain), gr.update(visible=plain), gr.update(visible=not plain)

    form.change(show, form, [prompt, response, turns], **board.quiet)

    @explained(error, result)
    async def run(*values: Any) -> str:
        chosen, asked_prompt, asked_response, asked_turns, safety, tokens, cut = values
        item = (
            {"prompt": asked_prompt, "response": asked_response}
            if chosen == "Prompt and response"
            else {"messages": messages_of(asked_turns)}
        )
        return await score(client, board, Asked(item, safety, cut), by_token=tokens)

    inputs = [form, prompt, response, turns, is_safety, by_token, truncation]
    gr.on(
        [go.click, prompt.submit, response.submit, turns.submit],
        run,
        inputs,
        [error, result],
        **board.asking(result),
    )


EMPTY = "Write a prompt and a response, or take an example, and press Score (Shift+Enter in a field does the same)."
