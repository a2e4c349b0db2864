"""A tab's inputs as the browser keeps them: which result an edit greys out, the displayed request, and the link that restores the inputs.

The link has the inputs in its fragment, which no browser sends to a server.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from app.errors import RequestError
from app.ui.parts import UIContext
from app.ui.render import render
from app.ui.snippets import Snippet

AsCode = Callable[..., list[Snippet]]


def url_of(request: gr.Request) -> str:
    """The URL under which the browser reaches the service."""
    return str(request.request.base_url).rstrip("/").removesuffix("/ui")


def code_box(tab: str) -> gr.HTML:
    """Where the tab's snippets are. The browser triggers its input event where they are not those of the current inputs."""
    script = f"window.rewardPage.codeBox({json.dumps(tab)}, trigger)"
    return gr.HTML(js_on_load=script, elem_id=f"{tab}-code")


@dataclass(frozen=True, slots=True)
class Form:
    """The inputs of one tab by name, in the order in which its handlers take them.

    `tab` is the prefix of the tab's element ids: its result is in #{tab}-result, its snippets are in #{tab}-code.
    """

    page: gr.Blocks
    context: UIContext
    tab: str
    inputs: Mapping[str, Component]

    @property
    def components(self) -> list[Component]:
        return list(self.inputs.values())

    def made_from(self, values: Sequence[Any]) -> dict[str, Any]:
        """The inputs of a result or of snippets; the browser compares them with the current ones."""
        return dict(zip(self.inputs, values, strict=True))

    def script(self, function: str) -> str:
        """JavaScript for an event: calls a function of inputs.js with the tab, the inputs' names, and their values."""
        arguments = f"{json.dumps(self.tab)}, {json.dumps(list(self.inputs))}"
        return f"(...values) => window.rewardPage.{function}({arguments}, values)"

    def follow(self, code: gr.HTML, as_code: AsCode, also: Sequence[Dependency] = ()) -> Dependency:
        """Restores the inputs from the page's link, and from then on follows every change of them. `code` is the `code_box`.

        `as_code(url, *values)` makes the snippets for the current inputs; it may raise a RequestError. `also` are events that
        change inputs whose own change event the browser does not send, because they are hidden. Returns the restoring event.
        """

        async def redraw(request: gr.Request, *values: Any) -> str:
            try:
                found, message = as_code(url_of(request), *values), ""
            except RequestError as error:
                found, message = [], error.message
            return render("code.html", snippets=found, message=message, made_from=self.made_from(values))

        quiet = self.context.quiet
        names = self.components
        restored = self.page.load(None, names, names, js=self.script("restored"), **quiet)
        changes = [getattr(component, "change") for component in names]  # noqa: B009 - added to the classes at run time
        gr.on(changes, None, names, None, js=self.script("edited"), **quiet)
        code.input(redraw, names, code, trigger_mode="always_last", **quiet)
        for event in (restored, *also):
            event.then(None, names, None, js=self.script("edited"), **quiet)
        restored.then(None, None, None, js=self.script("opened"), **quiet)
        return restored
