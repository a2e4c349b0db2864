"""What the tabs share: the service that they show, and errors that say in words what was wrong."""

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import gradio as gr

from app.engine.engine import Engine
from app.engine.reward_model import RewardModel
from app.errors import RequestError
from app.service import Service
from app.ui.client import RefusedError
from app.ui.render import render

logger = logging.getLogger(__name__)
Handler = Callable[..., Awaitable[Any]]


class Board:
    """The running service, as far as the page looks past the API: token texts, and what was set at the start."""

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # noqa: RUF012

    def __init__(self, service: Service) -> None:
        self._service = service
        self.threshold = service.settings.safety_threshold
        self.beta = service.settings.beta
        self.has_keys = bool(service.settings.api_keys)

    @staticmethod
    def asking(result: gr.HTML) -> dict[str, Any]:
        """For an event that asks the API: what was changed while an answer is on its way is asked next."""
        return {
            "show_progress": "minimal",
            "show_progress_on": result,
            "api_visibility": "private",
            "trigger_mode": "always_last",
        }

    @property
    def engine(self) -> Engine[RewardModel]:
        return self._service.ready_engine()


def explained(error: gr.HTML, result: gr.HTML) -> Callable[[Handler], Handler]:
    """A handler of Gradio's: its answer goes to `result`, and where it raises, the reason in words to `error`."""

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        async def guarded(*values: Any) -> dict[Any, Any]:
            try:
                answer = await handler(*values)
            except (RefusedError, RequestError) as refusal:
                return {error: error_box(refusal.status, refusal.code, refusal.message), result: NO_ANSWER}
            except Exception:
                logger.exception("the page failed")
                return {
                    error: error_box(500, "page_failed", "The page itself failed; the log says how."),
                    result: NO_ANSWER,
                }
            return {error: ""} | (answer if isinstance(answer, dict) else {result: answer})

        return guarded

    return decorate


def error_box(status: int, code: str, message: str) -> str:
    return render("error.html", status=status, code=code, message=message)


NO_ANSWER = render("empty.html", title="No answer", text="The service refused this; the reason stands with the input.")
