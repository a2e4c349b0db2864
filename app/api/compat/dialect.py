"""Shared by all dialects: the choice of model, truncation, deadline, and the selection of a score.

Knows no dialect's body. Every dialect scores through `select`, which calls `Service.score` once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, model_validator
from starlette.responses import JSONResponse

from app.api.schemas import FunctionCall, Message, ToolCall
from app.checkpoints.model_settings import LLAMA2, ROLES
from app.engine.inputs import Input, RenderedChat, Rollout
from app.engine.requests import ItemScore
from app.errors import InvalidInputError, RequestError, UnavailableError
from app.rewards.logistic import probability
from app.rewards.selection import ThresholdOn, selects_safety
from app.service import Service
from app.settings import Settings, Truncation


class CompatBody(BaseModel):
    """Ignores unknown fields: clients send options of the server that they were written for."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class TextPart(CompatBody):
    type: Literal["text"]
    text: str


class ChatFunction(FunctionCall):
    model_config = ConfigDict(extra="ignore")


class ChatToolCall(ToolCall):
    model_config = ConfigDict(extra="ignore")

    function: ChatFunction


def join_text_parts(content: object) -> object:
    """A list of text parts as one text; anything else unchanged."""
    if isinstance(content, list):
        return "".join(part.text for part in TEXT_PARTS.validate_python(content))
    return content


TEXT_PARTS = TypeAdapter(list[TextPart])


class ChatMessage(Message):
    """A turn whose content may be text parts, which are joined; a turn without content has the empty text."""

    model_config = ConfigDict(extra="ignore")

    content: Annotated[str, BeforeValidator(join_text_parts, json_schema_input_type=str | list[TextPart])] | None = ""
    tool_calls: Sequence[ChatToolCall] | None = None

    @model_validator(mode="after")
    def says_something(self) -> Self:
        return self


COMPAT_STATUSES = (400, 413, 415, 422, 500, 503, 504)
COMPAT_TAGS = ("compatibility",)


def error_json(body: object, status: int, error: RequestError) -> JSONResponse:
    """An error response of a dialect, with Retry-After if a retry can succeed."""
    retry = {"retry-after": str(error.retry_after_seconds)} if isinstance(error, UnavailableError) else None
    return JSONResponse(body, status, retry)


@dataclass(frozen=True, slots=True)
class Selected:
    """One input's result: the score by the chosen model, and the scores of all models that ran."""

    score: float
    num_tokens: int
    truncated: bool
    by_model: dict[str, ItemScore]
    num_cached_tokens: int  # cached by all models
    token_scores: list[float] | None = None
    """If requested, the chosen model's scores after every token, or at its steps."""
    is_probability: bool = False  # the scores are probabilities already

    def value(self, *, activation: bool) -> float:
        """The probability if an activation is requested, else the raw score."""
        return self.values([self.score], activation=activation)[0]

    def values(self, scores: list[float], *, activation: bool) -> list[float]:
        """`value` for several scores of this model."""
        return [probability(score) for score in scores] if activation and not self.is_probability else scores


def choose_model(service: Service, wanted: object) -> str:
    """The choice that `wanted` names: a model, or `llama2`. Anything else (verl sends a path) means REWARD_COMPAT_MODEL.

    The default is `llama2` if both of its models are loaded, else the first model. Raises InvalidInputError if a model that
    the choice needs is not loaded.
    """
    loaded = service.require_models(None, "scoring")
    if isinstance(wanted, str) and wanted in (LLAMA2, *ROLES, *loaded):
        service.require_models(models_of(wanted), f"model {wanted}")
        return wanted
    return service.settings.compat_model or choices(loaded)[0]


def choices(loaded: Sequence[str]) -> list[str]:
    """The names that a request's `model` can have: `llama2` if both of its models are loaded, and each model."""
    return [*([LLAMA2] if set(ROLES) <= set(loaded) else []), *loaded]


def models_of(choice: str) -> tuple[str, ...]:
    """The models that a choice needs."""
    return ROLES if choice == LLAMA2 else (choice,)


def choose_truncation(settings: Settings, *, has_boundary: bool) -> Truncation:
    """REWARD_COMPAT_TRUNCATION, but `left` instead of `prompt` if the input does not mark where its response begins.

    The default is `left`: it equals `prompt` as long as the response fits, and fails no batch if it does not.
    """
    given = settings.compat_truncation
    return "left" if given is None or (given == "prompt" and not has_boundary) else given


def rendered_chat(settings: Settings, text: str, *, add_special_tokens: bool = True) -> RenderedChat:
    """Text that a client rendered; REWARD_COMPAT_CLOSE determines how its last turn ends."""
    return RenderedChat(text, settings.compat_close == "template", add_special_tokens)


def rollout(settings: Settings, prompt: Sequence[ChatMessage], response: str) -> Rollout:
    """Messages, and a response as the policy generated it; REWARD_COMPAT_CLOSE determines how its turn ends."""
    return Rollout(tuple(message.turn() for message in prompt), response, settings.compat_close == "template")


def is_safety(label: object) -> bool:
    """Whether a trainer's label marks a safety prompt: `"safety"` or `{"is_safety": true}`."""
    return label == "safety" or (isinstance(label, dict) and label.get("is_safety") is True)


def deadline_of(settings: Settings, client_seconds: float) -> float:
    """`client_seconds`, which is a little less than the client's time-out, unless the operator set a shorter deadline."""
    is_set = "deadline_seconds" in settings.model_fields_set
    return min(client_seconds, settings.deadline_seconds) if is_set else client_seconds


async def select(
    service: Service,
    inputs: Sequence[Input],
    choice: str,
    *,
    truncation: Truncation,
    safety_labels: Sequence[bool] | None = None,
    deadline_seconds: float | None = None,
    token_scores: bool = False,
) -> list[Selected]:
    """Each input's score by the choice of model, in order; an empty list for no inputs.

    `llama2` is R_c of Llama 2 (arXiv 2307.09288, section 3.2.3): the safety score if the label marks a safety prompt or
    its probability is below the threshold, else the helpfulness score.
    """
    if not inputs:
        return []
    service.check_count("the request", len(inputs))
    models = models_of(choice)
    scores = await service.score(
        inputs, models=models, truncation=truncation, token_scores=token_scores, deadline_seconds=deadline_seconds
    )
    labels = safety_labels if safety_labels is not None else [False] * len(inputs)
    threshold = service.settings.safety_threshold
    return [selected(item, choice, label, threshold) for item, label in zip(scores.items, labels, strict=True)]


def selected(item: dict[str, ItemScore], choice: str, label: bool, threshold: float) -> Selected:
    """The score of the chosen model, or of the one that R_c selects; `threshold` is a probability in (0, 1)."""
    name = choice
    if choice == LLAMA2:
        unit: ThresholdOn = "score" if item["safety"].is_probability else "probability"
        name = "safety" if selects_safety(item["safety"].score, label, threshold, unit) else "helpfulness"
    return Selected(
        item[name].score,
        max(score.num_tokens for score in item.values()),
        any(score.truncated for score in item.values()),
        item,
        min(score.num_cached_tokens for score in item.values()),
        steps.scores if (steps := item[name].steps) is not None else item[name].token_scores,
        item[name].is_probability,
    )


def as_list(given: object, name: str) -> list[Any]:
    """A single text or a single list of token ids as a list of one. Raises InvalidInputError if there is no input."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise InvalidInputError(f"{name} is empty; send at least one input")
    return [given] if isinstance(given[0], int) else given
