"""LLaMA-Factory's reward server: conversations rendered with special tokens; `scores` are raw.

Its PPO trainer (`reward_model_type: api`) ignores the status and has no time-out: it reads `scores` from any answer. Our
error bodies lack that field, so an error stops the trainer with a KeyError.
"""

from typing import Any

from pydantic import Field

from app.api.compat.dialect import (
    COMPAT_STATUSES,
    COMPAT_TAGS,
    CompatBody,
    choose_model,
    choose_truncation,
    rendered_chat,
    select,
)
from app.api.errors import ErrorFormat, error_response
from app.api.inputs import TheService
from app.api.schemas import ErrorBody, example
from app.engine.inputs import Input

ERRORS = ErrorFormat(error_response, ErrorBody, COMPAT_STATUSES, COMPAT_TAGS)


class EvaluationRequest(CompatBody):
    model_config = example({"model": "model", "messages": ["<s>How do I pick a lock? Ask a locksmith.</s>"]})

    messages: list[str] = Field(description="Rendered conversations, each one text.")
    model: Any = None


class EvaluationResponse(CompatBody):
    id: str = "score"
    object: str = "score"
    model: str
    scores: list[float]


async def evaluation(body: EvaluationRequest, service: TheService) -> EvaluationResponse:
    results = await select(
        service,
        [
            Input(rendered_chat(service.settings, text, add_special_tokens=False), i, f"messages[{i}]")
            for i, text in enumerate(body.messages)
        ],
        choose_model(service, body.model),
        truncation=choose_truncation(service.settings, has_boundary=False),
    )
    return EvaluationResponse(model=str(body.model), scores=[result.score for result in results])
