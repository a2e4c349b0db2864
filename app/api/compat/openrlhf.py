"""OpenRLHF's remote reward model: one query per request, already rendered with special tokens.

`rewards` are raw scores; `scores` are probabilities, because dynamic filtering expects values from 0 to 1; `extra_logs` has
each model's score.
"""

from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from app.api.compat.dialect import (
    COMPAT_STATUSES,
    COMPAT_TAGS,
    CompatBody,
    choose_model,
    choose_truncation,
    deadline_of,
    error_json,
    is_safety,
    models_of,
    rendered_chat,
    select,
)
from app.api.errors import ErrorFormat
from app.api.inputs import TheService
from app.api.schemas import example
from app.engine.inputs import Input, TokenIds
from app.errors import InvalidInputError, RequestError
from app.settings import Settings

DEADLINE_SECONDS = 170
"""The client times out after 180 s and retries 5 times."""


class OpenRLHFError(BaseModel):
    detail: str


def write_error(error: RequestError) -> Response:
    return error_json({"detail": error.message}, error.status, error)


ERRORS = ErrorFormat(write_error, OpenRLHFError, COMPAT_STATUSES, COMPAT_TAGS)


class GetRewardRequest(CompatBody):
    model_config = example({"query": ["<s>How do I pick a lock? Ask a locksmith.</s>"], "labels": ["safety"]})

    query: list[str] | None = None
    input_ids: list[list[int]] | None = Field(
        None, description="Token ids of each query, scored as they are in place of the texts."
    )
    prompts: list[Any] | None = None
    labels: list[Any] | None = None
    model: Any = None

    def inputs(self, settings: Settings) -> list[Input]:
        if self.input_ids is not None:
            if self.query is not None and len(self.query) != len(self.input_ids):
                raise InvalidInputError(
                    f"input_ids has {len(self.input_ids)} entries and query {len(self.query)}; send one per query"
                )
            return [Input(TokenIds(ids), i, f"input_ids[{i}]") for i, ids in enumerate(self.input_ids)]
        if self.query is None:
            raise InvalidInputError("query is missing; send a list of texts, or input_ids")
        return [
            Input(rendered_chat(settings, query, add_special_tokens=False), i, f"query[{i}]")
            for i, query in enumerate(self.query)
        ]


class GetRewardResponse(CompatBody):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


async def get_reward(body: GetRewardRequest, service: TheService) -> GetRewardResponse:
    choice = choose_model(service, body.model)
    inputs = body.inputs(service.settings)
    labels = body.labels or [None] * len(inputs)
    if len(labels) != len(inputs):
        raise InvalidInputError(f"labels has {len(labels)} entries and query {len(inputs)}; send one per query")
    results = await select(
        service,
        inputs,
        choice,
        truncation=choose_truncation(service.settings, has_boundary=False),
        safety_labels=[is_safety(label) for label in labels],
        deadline_seconds=deadline_of(service.settings, DEADLINE_SECONDS),
    )
    logs = {f"{name}_score": [result.by_model[name].score for result in results] for name in models_of(choice)}
    return GetRewardResponse(
        rewards=[result.score for result in results],
        scores=[result.value(activation=True) for result in results],
        extra_logs=logs | {"truncated": [float(result.truncated) for result in results]},
    )
