"""What the tabs share: the context of the service, and the display of errors."""

import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import wraps
from typing import Any

import gradio as gr

from app.checkpoints.model_settings import ROLES
from app.engine.engine import Engine
from app.engine.reward_model import RewardModel
from app.errors import RequestError, StartError
from app.service import Service
from app.ui.client import RefusedError
from app.ui.render import render
from app.ui.words import Names, in_page_words

logger = logging.getLogger(__name__)
NamesOf = Callable[[tuple[Any, ...]], Names]
Handler = Callable[..., Awaitable[Any]]


class UIContext:
    """The parts of the running service that the page reads directly and not through the API: tokenizers and settings."""

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # noqa: RUF012

    def __init__(self, service: Service) -> None:
        self._service = service
        self.threshold = service.settings.safety_threshold
        self.beta = service.settings.beta
        self.has_keys = bool(service.settings.api_keys)
        self.model_names = service.settings.model_names

    @property
    def model_choices(self) -> list[str]:
        """The models to choose one from: helpfulness first, as POST /compare takes it by default."""
        return sorted(self.model_names, key=(*reversed(ROLES), *self.model_names).index)

    @staticmethod
    def asking(result: gr.HTML) -> dict[str, Any]:
        """Options of an event that calls the API: changes made during a call lead to one more call after it."""
        return {
            "show_progress": "minimal",
            "show_progress_on": result,
            "api_visibility": "private",
            "trigger_mode": "always_last",
        }

    async def until_loaded(self) -> None:
        """Returns as soon as the models are loaded, or cannot be; then the API says why."""
        with suppress(StartError):
            await self._service.wait_until_ready()

    @property
    def engine(self) -> Engine[RewardModel]:
        return self._service.ready_engine()


def no_names(_: tuple[Any, ...]) -> Names:
    return ()


def show_errors(error: gr.HTML, result: gr.HTML, names_of: NamesOf = no_names) -> Callable[[Handler], Handler]:
    """Wraps a Gradio event handler: its return value goes to `result`; if it raises, the message takes the result's place.

    `names_of(values)` says what the page calls the parts of the request that the handler sends, see `in_page_words`.
    """

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        async def guarded(*values: Any) -> dict[Any, Any]:
            try:
                answer = await handler(*values)
            except (RefusedError, RequestError) as refusal:
                message = in_page_words(refusal.message, names_of(values))
                return {error: error_box(refusal.status, refusal.code, message), result: ""}
            except Exception:
                logger.exception("the page failed")
                message = "The page itself failed. The service's log has the reason."
                return {error: error_box(500, "page_failed", message), result: ""}
            return {error: ""} | (answer if isinstance(answer, dict) else {result: answer})

        return guarded

    return decorate


def error_box(status: int, code: str, message: str) -> str:
    return render("error.html", status=status, code=code, message=message)


def file_drop(text: str, elem_id: str, also_on: str) -> gr.HTML:
    """An area to drop a text file on, or to choose one; elements that match the CSS selector `also_on` also accept a dropped file.

    Its upload event comes with the file's text as its value. The file itself is not uploaded.
    """
    script = f"window.rewardPage.dropZone(element, props, trigger, {json.dumps(also_on)})"
    return gr.HTML(
        value="",
        html_template=render("drop.html", text=text),
        js_on_load=script,
        apply_default_css=False,
        elem_id=elem_id,
    )
