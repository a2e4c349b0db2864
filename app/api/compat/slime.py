"""slime's remote reward model: one sample per request; the answer is a bare JSON number, the raw score.

A string prompt is already rendered, so it is joined with the response. Messages are rendered with the checkpoint's chat
template. In both cases the response may end with the end-of-turn token, as slime's does. miles, a fork of slime, sends the
same.
"""

from typing import Any

from pydantic import Field, RootModel

from app.api.compat.dialect import (
    COMPAT_STATUSES,
    COMPAT_TAGS,
    ChatMessage,
    CompatBody,
    choose_model,
    choose_truncation,
    deadline_of,
    is_safety,
    rendered_chat,
    rollout,
    select,
)
from app.api.errors import ErrorFormat, error_response
from app.api.inputs import TheService
from app.api.schemas import ErrorBody, example
from app.engine.inputs import Input, RenderedChat, Rollout, TokenIds
from app.errors import InvalidInputError
from app.settings import Settings

DEADLINE_SECONDS = 110
"""The client times out after 120 s and retries 10 times."""


ERRORS = ErrorFormat(error_response, ErrorBody, COMPAT_STATUSES, COMPAT_TAGS)
"""The native format: slime reads only the status."""


class SlimeRequest(CompatBody):
    model_config = example(
        {"prompt": "<s>[INST] How do I pick a lock? [/INST]", "response": " Ask a locksmith.", "label": "safety"}
    )

    prompt: str | list[ChatMessage] | None = None
    response: str | None = None
    input_ids: list[int] | None = Field(
        None, min_length=1, description="Token ids of prompt and response, scored as they are in place of the texts."
    )
    label: Any = None
    model: Any = None

    def form(self, settings: Settings) -> RenderedChat | Rollout | TokenIds:
        if self.input_ids is not None:
            return TokenIds(self.input_ids)
        if self.prompt is None or self.response is None:
            raise InvalidInputError(
                f"{'prompt' if self.prompt is None else 'response'} is missing; send both prompt and response, or input_ids"
            )
        if isinstance(self.prompt, str):
            return rendered_chat(settings, self.prompt + self.response)
        return rollout(settings, self.prompt, self.response)


class Reward(RootModel[float]):
    """A bare number."""


async def slime(body: SlimeRequest, service: TheService) -> Reward:
    form = body.form(service.settings)
    (result,) = await select(
        service,
        [Input(form, 0, "the sample")],
        choose_model(service, body.model),
        truncation=choose_truncation(service.settings, has_boundary=isinstance(form, Rollout)),
        safety_labels=[is_safety(body.label)],
        deadline_seconds=deadline_of(service.settings, DEADLINE_SECONDS),
    )
    return Reward(result.score)
