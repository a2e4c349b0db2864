"""What the dialects share: which model answers, how long inputs are cut, how long they may take, where errors go.

Knows no dialect's body. All of them score through `select`, which is one call of `Service.score`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.inputs import while_connected
from app.api.route import JSONRoute
from app.api.score import sigmoid
from app.engine.engine import ItemScore
from app.engine.tokenization import Input
from app.errors import InvalidInputError, RequestError, UnavailableError
from app.schemas import ErrorBody
from app.service import Service
from app.settings import CompatModel, Settings, Truncation
from app.shaping import logit

MODELS_OF: dict[CompatModel, tuple[str, ...]] = {
    "llama2": ("safety", "helpfulness"),
    "safety": ("safety",),
    "helpfulness": ("helpfulness",),
}


class CompatBody(BaseModel):
    """Unknown fields are ignored: other servers' options come with their clients' bodies."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class TextPart(CompatBody):
    type: Literal["text"]
    text: str


class ChatMessage(CompatBody):
    role: str
    content: str | list[TextPart] | None = None

    def turn(self) -> dict[str, str]:
        """Role and text; a list of text parts is joined, and what has no content has the empty text."""
        parts = self.content or ""
        return {"role": self.role, "content": parts if isinstance(parts, str) else "".join(p.text for p in parts)}


class CompatRoute(JSONRoute, ABC):
    """A route whose every RequestError is answered by `answer_error`, in the dialect's own body and codes."""

    error_body: ClassVar[type[BaseModel]]
    error_statuses: ClassVar[tuple[int, ...]] = (400, 413, 422, 500, 503, 504)

    @staticmethod
    @abstractmethod
    def answer_error(error: RequestError) -> Response:
        """The dialect's response to the error."""


def compat_router(route_class: type[CompatRoute]) -> APIRouter:
    """For a dialect's routes, which read bodies and answer errors as `route_class` does."""
    responses: dict[int | str, dict[str, Any]] = {
        **{status: {"model": ErrorBody} for status in (401, 403)},  # at the gate, which knows no dialects
        **{status: {"model": route_class.error_body} for status in route_class.error_statuses},
    }
    return APIRouter(route_class=route_class, tags=["compatibility"], responses=responses)


def error_json(body: object, status: int, error: RequestError) -> JSONResponse:
    """The dialect's body, with Retry-After where it is worth to retry."""
    retry = {"retry-after": str(error.retry_after_seconds)} if isinstance(error, UnavailableError) else None
    return JSONResponse(body, status, retry)


@dataclass(frozen=True, slots=True)
class Selected:
    """One input's answer: the score that the choice of model gives it, and each model's that was asked."""

    score: float
    num_tokens: int
    truncated: bool
    by_model: dict[str, ItemScore]

    def value(self, *, activation: bool) -> float:
        """The probability where an activation is asked for, else the raw score."""
        return sigmoid(self.score) if activation else self.score


def choose_model(service: Service, wanted: object) -> CompatModel:
    """The choice that `wanted` names; anything else (verl sends a path) means REWARD_COMPAT_MODEL.

    By default `llama2` where both models are loaded, else the one that is. Raises InvalidInputError where a model
    that the choice needs is not loaded.
    """
    for name, needed in MODELS_OF.items():
        if wanted == name:
            service.require_models(needed, f"model {name}")
            return name
    if service.settings.compat_model is not None:
        return service.settings.compat_model
    loaded = service.require_models(None, "scoring")
    return next(name for name, needed in MODELS_OF.items() if set(needed) <= set(loaded))


def choose_truncation(settings: Settings, *, has_boundary: bool) -> Truncation:
    """REWARD_COMPAT_TRUNCATION, and `left` in place of `prompt` where nobody says where the response begins.

    Unset it is `left`: what `prompt` does as long as the response fits, and no failed batch where it does not.
    """
    given = settings.compat_truncation
    return "left" if given is None or (given == "prompt" and not has_boundary) else given


def is_safety(label: object) -> bool:
    """Whether a trainer's label marks a safety prompt: `"safety"` or `{"is_safety": true}`."""
    return label == "safety" or (isinstance(label, dict) and label.get("is_safety") is True)


def deadline_of(settings: Settings, client_seconds: float) -> float:
    """`client_seconds`, a little under the client's time-out, unless the operator set a shorter deadline."""
    is_set = "deadline_seconds" in settings.model_fields_set
    return min(client_seconds, settings.deadline_seconds) if is_set else client_seconds


async def select(
    request: Request,
    service: Service,
    inputs: Many[Input],
    choice: CompatModel,
    *,
    truncation: Truncation,
    safety_labels: Many[bool] | None = None,
    deadline_seconds: float | None = None,
) -> list[Selected]:
    """Each input's score by the choice of model, in order; no inputs give no answers.

    `llama2` is the paper's R_c: the safety score where the label says so or its probability is below the threshold.
    """
    if not inputs:
        return []
    service.check_count("the request", len(inputs))
    models = MODELS_OF[choice]
    scoring = service.score(inputs, models=models, truncation=truncation, deadline_seconds=deadline_seconds)
    scores = await while_connected(request, scoring)
    labels = safety_labels if safety_labels is not None else [False] * len(inputs)
    below = threshold_score(service.settings.safety_threshold)
    return [selected(item, choice, label, below) for item, label in zip(scores.items, labels, strict=True)]


def selected(item: dict[str, ItemScore], choice: CompatModel, label: bool, below: float) -> Selected:
    """`shaping.selects_safety` of one item, in fp64 as there."""
    name = choice
    if choice == "llama2":
        name = "safety" if label or item["safety"].score < below else "helpfulness"
    return Selected(
        item[name].score,
        max(score.num_tokens for score in item.values()),
        any(score.truncated for score in item.values()),
        item,
    )


@cache
def threshold_score(threshold: float) -> float:
    return float(logit(torch.tensor(threshold, dtype=torch.float64)))


def as_many(given: object, name: str) -> list[Any]:
    """A single text or a single list of token ids as a list of one; raises InvalidInputError for no input at all."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise InvalidInputError(f"{name} is empty; send at least one input")
    return [given] if isinstance(given[0], int) else given
