"""`/pooling`, `/v1/embeddings`, `/v1/classify`, and `/classify` for bodies with `input` or `messages`.

verl and others call them. (The route `/classify` is in `sglang`, which calls `classify` here.) Scores are raw unless the
request asks for an activation. vLLM's own default is a sigmoid; REWARD_COMPAT_ACTIVATION restores it.
"""

import time
import uuid
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema
from starlette.responses import Response

from app.api.compat.dialect import Selected, as_list, choose_model, rendered_chat, select
from app.api.compat.vllm.encoding import Encoding, Values
from app.api.compat.vllm.options import ChatRendering, SharedOptions, check_refused, unsupported
from app.api.inputs import TheService
from app.api.schemas import example
from app.engine.inputs import Input, Messages, TokenIds
from app.errors import InvalidInputError
from app.service import Service
from app.settings import Settings

TASKS = ("classify", "token_classify")
REMOVED_TASKS = {
    "score": "`score` task was removed; use `classify` instead.",
    "encode": "`encode` task was removed; use `token_embed` or `token_classify` instead.",
}


def one_or_more(*items: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a text or a list that is not empty, as `as_list` accepts it."""
    return {"anyOf": [{"type": "string"}, *({"type": "array", "items": each, "minItems": 1} for each in items)]}


TEXT, TOKEN_ID = {"type": "string"}, {"type": "integer"}
TOKEN_IDS = {"type": "array", "items": TOKEN_ID, "minItems": 1}


class ClassificationRequest(SharedOptions, ChatRendering):
    """Exactly one of `input` and `messages`."""

    model_config = example({"model": "llama2", "input": ["How long should green tea steep? Two to three minutes."]})

    input: (
        Annotated[str | list[str] | list[int] | list[list[int]], WithJsonSchema(one_or_more(TEXT, TOKEN_ID, TOKEN_IDS))]
        | None
    ) = None
    activation: bool | None = Field(None, description="As use_activation; older verl sends it.")
    softmax: bool | None = Field(None, description="As use_activation; older vLLM took it.")

    def activates(self, default: bool) -> bool:
        given = (self.use_activation, self.activation, self.softmax)
        return next((flag for flag in given if flag is not None), default)

    def engine_inputs(self, settings: Settings) -> list[Input]:
        if (self.input is None) == (self.messages is None):
            given = "no input" if self.input is None else "both input and messages"
            raise InvalidInputError(f"the request has {given}; send exactly one of input and messages")
        if self.messages is not None:
            turns = tuple(message.turn() for message in self.messages)
            return [Input(Messages(turns, self.chat_options()), 0, "messages")]
        self.check_chat_only()
        with_special_tokens = self.add_special_tokens is not False
        return engine_inputs(as_list(self.input, "input"), "input", settings, add_special_tokens=with_special_tokens)


class PoolingRequest(ClassificationRequest, Encoding):
    """Exactly one of `input` and `messages`."""

    dimensions: Any = unsupported()
    data: Any = unsupported()
    task: Annotated[str, WithJsonSchema({"enum": list(TASKS)})] | None = Field(
        None,
        description="classify: one score per input. token_classify: the score after every token, or at every step of a process "
        "reward model.",
    )

    @property
    def wants_tokens(self) -> bool:
        """Whether scores after every token are requested. Raises InvalidInputError for a task that reward models lack."""
        if self.task is None or self.task in TASKS:
            return self.task == "token_classify"
        if self.task == "plugin":
            raise InvalidInputError(
                "No IOProcessor plugin installed. Choose one of the tasks classify and token_classify."
            )
        raise InvalidInputError(
            REMOVED_TASKS.get(self.task, f"Unsupported task: {self.task!r:.40} Supported tasks: {TASKS}")
        )


class EmbeddingRequest(ClassificationRequest, Encoding):
    """Exactly one of `input` and `messages`."""

    dimensions: Any = unsupported()
    lora_path: Any = unsupported()
    embed_override_token_id: Any = unsupported()
    embed_overrides: Any = unsupported()


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class PoolingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails


class ClassData(BaseModel):
    index: int
    label: str = "LABEL_0"
    probs: list[float]
    num_classes: int = 1


class PoolingData(BaseModel):
    index: int
    object: Literal["pooling"] = "pooling"
    data: Values | str


class EmbeddingData(BaseModel):
    index: int
    object: Literal["embedding"] = "embedding"
    embedding: Values | str


class PoolingReply(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ClassData] | list[PoolingData] | list[EmbeddingData]
    usage: PoolingUsage


def engine_inputs(given: list[Any], name: str, settings: Settings, *, add_special_tokens: bool = True) -> list[Input]:
    """The engine's inputs: texts are taken as rendered chats, token ids as they are."""
    return [
        Input(
            rendered_chat(settings, one, add_special_tokens=add_special_tokens)
            if isinstance(one, str)
            else TokenIds(one),
            i,
            f"{name}[{i}]",
        )
        for i, one in enumerate(given)
    ]


async def score_inputs(
    body: SharedOptions, service: Service, inputs: list[Input], *, has_boundary: bool, token_scores: bool = False
) -> tuple[list[Selected], str]:
    """The inputs' scores with the request's shared options, and the model's name for the reply."""
    check_refused(body)
    choice = choose_model(service, body.model)
    max_length = body.max_length(service, choice)
    if max_length is not None:
        inputs = [replace(item, max_length=max_length) for item in inputs]
    results = await select(
        service,
        inputs,
        choice,
        truncation=body.truncation(service, has_boundary=has_boundary),
        token_scores=token_scores,
    )
    return results, body.model or choice


def reply_fields(body: SharedOptions, prefix: str, model: str, results: list[Selected]) -> dict[str, Any]:
    """The fields that every reply has."""
    num_tokens = sum(result.num_tokens for result in results)
    return {
        "id": f"{prefix}-{body.request_id or uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model,
        "usage": PoolingUsage(
            prompt_tokens=num_tokens,
            total_tokens=num_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(each.num_cached_tokens for each in results)),
        ),
    }


async def answer(
    body: ClassificationRequest, service: Service, prefix: str, *, token_scores: bool = False
) -> tuple[list[Selected], dict[str, Any]]:
    check_refused(body)
    inputs = body.engine_inputs(service.settings)
    has_boundary = body.messages is not None
    results, model = await score_inputs(body, service, inputs, has_boundary=has_boundary, token_scores=token_scores)
    return results, reply_fields(body, prefix, model, results)


async def classify(body: ClassificationRequest, service: TheService) -> PoolingReply:
    results, reply = await answer(body, service, "classify")
    activation = body.activates(service.settings.compat_activation)
    return PoolingReply(
        data=[ClassData(index=i, probs=[r.value(activation=activation)]) for i, r in enumerate(results)], **reply
    )


async def pooling(body: PoolingRequest, service: TheService) -> PoolingReply | Response:
    wants_tokens = body.wants_tokens
    results, reply = await answer(body, service, "pool", token_scores=wants_tokens)
    activation = body.activates(service.settings.compat_activation)
    outputs = [values_of(result, activation=activation, wants_tokens=wants_tokens) for result in results]
    if body.encoding_format in {"bytes", "bytes_only"}:
        return body.response(outputs, reply | {"usage": reply["usage"].model_dump()})
    data = [PoolingData(index=i, data=body.encoded(values)) for i, values in enumerate(outputs)]
    return PoolingReply(data=data, **reply)


async def embeddings(body: EmbeddingRequest, service: TheService) -> PoolingReply | Response:
    results, reply = await answer(body, service, "embd")
    activation = body.activates(default=False)  # SGLang returns raw scores as embeddings
    outputs: list[Values] = [[result.value(activation=activation)] for result in results]
    if body.encoding_format in {"bytes", "bytes_only"}:
        return body.response(outputs, reply | {"usage": reply["usage"].model_dump()})
    data = [EmbeddingData(index=i, embedding=body.encoded(values)) for i, values in enumerate(outputs)]
    return PoolingReply(data=data, **reply)


def values_of(result: Selected, *, activation: bool, wants_tokens: bool) -> Values:
    """A list with the score, or with a list of one score per token."""
    if not wants_tokens:
        return [result.value(activation=activation)]
    return [[value] for value in result.values(result.token_scores or [], activation=activation)]
