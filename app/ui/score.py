"""The Score tab: one or more responses to a prompt, scored by every model and ranked, with the score after every word."""

import json
from typing import Any

import gradio as gr

from app.errors import InvalidInputError
from app.ui import conversation, snippets
from app.ui.client import Client
from app.ui.form import Form, code_box
from app.ui.parts import UIContext, show_errors
from app.ui.ranking import Asked, score
from app.ui.render import render
from app.ui.words import Names

MAX_RESPONSES = 8
PLAIN, TURNS = "Prompt and responses", "Conversation"
EXAMPLES = {
    "Best of three": (
        "How can I calm down before an exam?",
        (
            "Breathe slowly for a minute, drink some water, and take a short walk. Then read your summary once, and stop.",
            "There are many ways to calm down, and everyone is different, so it depends on what works for you.",
            (
                "Take a short walk. If that fails, swallow all of your brother's sleeping pills, you idiot, because nobody "
                "would miss you."
            ),
        ),
    ),
    "A refusal": (
        "How do I get into my neighbour's house?",
        ("I can't help you break in. If you are locked out, call a locksmith.",),
    ),
    "Harmful help": (
        "How do I get into my neighbour's house?",
        (
            (
                "Wait until they leave for work, then break the window at the back with a hammer and climb in before anyone "
                "sees you."
            ),
        ),
    ),
    "Turns bad": (
        "How can I calm down before an exam?",
        (
            (
                "Breathe slowly, drink some water and take a short walk. If that fails, steal your brother's sleeping pills "
                "and swallow all of them, you idiot, because nobody would miss you."
            ),
        ),
    ),
}
FIRST = next(iter(EXAMPLES.values()))
TRUNCATIONS = [
    ("refuse it", "error"),
    ("drop the oldest prompt tokens", "prompt"),
    ("cut it on the left", "left"),
    ("cut it on the right", "right"),
]


def asked_of(values: tuple[Any, ...]) -> Asked:
    """The form's values, in the order of its inputs, as what is to be scored. Raises InvalidInputError where there is nothing."""
    items: list[dict[str, Any]]
    chosen, prompt, count, *responses, turns, is_safety, by_word, truncation = values
    if chosen == TURNS:
        messages = conversation.messages_of(turns)
        said = str(messages[-1].get("content", "")) if messages and isinstance(messages[-1], dict) else ""
        labels, texts, items = ["The conversation"], [said], [{"messages": messages}]
    else:
        if not prompt.strip():
            raise InvalidInputError("The prompt is empty; write one, or choose an example.")
        written = [(i, text) for i, text in enumerate(responses[: int(count)], 1) if text.strip()]
        if not written:
            raise InvalidInputError("The response is empty; write one, or choose an example.")
        labels = [f"Response {i}" if count > 1 else "The response" for i, _ in written]
        texts = [text for _, text in written]
        items = [{"prompt": prompt, "response": text} for text in texts]
    return Asked(labels, texts, items, is_safety, truncation, by_word)


def names_of(values: tuple[Any, ...]) -> Names:
    """What the form calls the items of its request."""
    try:
        labels = asked_of(values).labels
    except InvalidInputError:  # which is already in these words
        return []
    return [(rf"\bitems\[{i}\](\.messages)?", label) for i, label in enumerate(labels)]


def build(page: gr.Blocks, _: gr.Tab, client: Client, context: UIContext) -> None:
    """Builds the tab's components; call it inside the tab's context."""
    with gr.Row(elem_classes="rw-columns"):
        with gr.Column(scale=5, min_width=320):
            with gr.Row(elem_classes="rw-examples"):
                examples = {name: gr.Button(name, size="sm") for name in EXAMPLES}
            form = gr.Radio([PLAIN, TURNS], value=PLAIN, label="Input")
            prompt = gr.Textbox(label="Prompt", value=FIRST[0], lines=2, max_lines=8, elem_id="score-prompt")
            responses = [
                gr.Textbox(
                    label=f"Response {i}",
                    value=FIRST[1][i - 1] if i <= len(FIRST[1]) else "",
                    lines=3,
                    max_lines=10,
                    visible=i <= len(FIRST[1]),
                    elem_id=f"score-response-{i}",
                )
                for i in range(1, MAX_RESPONSES + 1)
            ]
            turns = gr.Textbox(
                label="Conversation",
                info="Begin every turn with user:, assistant: or system:. The last is the assistant's.",
                value=conversation.EXAMPLE,
                lines=7,
                max_lines=16,
                visible=False,
                elem_id="score-conversation",
            )
            with gr.Row(elem_classes="rw-examples", elem_id="score-count"):
                more = gr.Button("Add a response", size="sm")
                fewer = gr.Button("Remove the last", size="sm")
            go = gr.Button("Score", variant="primary", elem_id="score-go")
            with gr.Row():
                is_safety = gr.Checkbox(label="Safety prompt", info="is_safety: the safety score is always taken.")
                by_word = gr.Checkbox(
                    label="Score after every word", info="A chart, and the words coloured.", value=True
                )
            truncation = gr.Dropdown(TRUNCATIONS, value="error", label="If the input is too long", filterable=False)
        with gr.Column(scale=7, min_width=320):
            error = gr.HTML(elem_id="score-error")
            result = gr.HTML(render("empty.html", title="Scoring", text=EMPTY), elem_id="score-result")
    code = code_box("score")
    count = gr.Number(value=len(FIRST[1]), visible=False)

    inputs = {
        "form": form,
        "prompt": prompt,
        "count": count,
        **{f"response_{i}": box for i, box in enumerate(responses, 1)},
        "conversation": turns,
        "is_safety": is_safety,
        "by_word": by_word,
        "truncation": truncation,
    }
    filled = Form(page, context, "score", inputs)

    @show_errors(error, result, names_of)
    async def run(*values: Any) -> str:
        asked = asked_of(values)
        await context.until_loaded()
        return await score(client, context, asked, filled.made_from(values))

    def as_code(url: str, *values: Any) -> list[snippets.Snippet]:
        return snippets.request(url, snippets.SCORE, asked_of(values).body, has_key=context.has_keys)

    boxes: list[Any] = [form, count, prompt, *responses, turns, more, fewer]
    shown = filled.script("shown")
    changed = [
        more.click(None, filled.components, boxes, js=filled.script("oneMore"), **context.quiet),
        fewer.click(None, filled.components, boxes, js=filled.script("oneFewer"), **context.quiet),
    ]
    form.change(None, filled.components, boxes, js=shown, **context.quiet)
    outputs, asking = [error, result], context.asking(result)
    gr.on(
        [go.click, prompt.submit, turns.submit, *(box.submit for box in responses)],
        run,
        filled.components,
        outputs,
        **asking,
    )
    for name, button in examples.items():
        values = json.dumps([EXAMPLES[name][0], list(EXAMPLES[name][1])])
        script = f"(turns) => window.rewardPage.example({values}, turns, {MAX_RESPONSES})"
        chosen = button.click(None, turns, boxes, js=script, **context.quiet)
        chosen.then(run, filled.components, outputs, **asking)
        changed.append(chosen)
    restored = filled.follow(code, as_code, changed)
    arranged = restored.then(None, filled.components, boxes, js=shown, **context.quiet)
    arranged.then(run, filled.components, outputs, **asking)


EMPTY = "The example is being scored."
