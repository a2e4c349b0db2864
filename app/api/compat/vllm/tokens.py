"""`/tokenize`: the token ids that the scoring routes would score, in the format of vLLM and SGLang."""

import asyncio
from typing import Annotated, Any

from pydantic import BaseModel, Field, WithJsonSchema

from app.api.compat.dialect import as_list, choose_model, models_of
from app.api.compat.vllm.options import ChatRendering, check_refused, max_model_len, unsupported
from app.api.compat.vllm.pooling import TEXT, engine_inputs, one_or_more
from app.api.inputs import TheService
from app.api.schemas import example
from app.engine.inputs import Input, Messages
from app.engine.tokenization import Tokenization
from app.errors import InvalidInputError
from app.settings import Settings

MAX_TOKENS = 1_000_000
"""The limit for one text. The models' own limits do not apply, because clients count tokens to compare with them."""


class TokenizeRequest(ChatRendering):
    """Exactly one of `prompt` and `messages`."""

    model_config = example({"prompt": "How long should green tea steep?", "return_token_strs": True})

    model: str | None = None
    prompt: Annotated[str | list[str], WithJsonSchema(one_or_more(TEXT))] | None = None
    return_token_strs: bool | None = None
    mm_processor_kwargs: Any = unsupported({})
    tool_choice: Any = unsupported()
    reasoning_effort: Any = unsupported()

    def inputs(self, settings: Settings) -> list[Input]:
        if (self.prompt is None) == (self.messages is None):
            given = "no input" if self.prompt is None else "both prompt and messages"
            raise InvalidInputError(f"the request has {given}; send exactly one of prompt and messages")
        if self.messages is not None:
            turns = tuple(message.turn() for message in self.messages)
            options = self.chat_options(add_generation_prompt=True)  # vLLM's default on this route
            return [Input(Messages(turns, options), 0, "messages", MAX_TOKENS)]
        self.check_chat_only()
        texts = as_list(self.prompt, "prompt")
        with_special_tokens = self.add_special_tokens is not False
        inputs = engine_inputs(texts, "prompt", settings, add_special_tokens=with_special_tokens)
        return [Input(each.form, each.item, each.location, MAX_TOKENS) for each in inputs]


class TokenizeReply(BaseModel):
    count: int | list[int]
    max_model_len: int
    tokens: list[int] | list[list[int]]
    token_strs: list[str] | list[list[str]] | None = Field(None, description="If they were asked for.")


async def tokenize(body: TokenizeRequest, service: TheService) -> TokenizeReply:
    check_refused(body)
    choice = choose_model(service, body.model)
    inputs = body.inputs(service.settings)
    service.check_count("prompt", len(inputs))
    models = service.ready_engine().models
    tokenizations = [models[name].tokenization for name in models_of(choice)]
    sequences = await asyncio.to_thread(common_ids, tokenizations, inputs)
    strings = [tokenizations[0].strings(ids) for ids in sequences] if body.return_token_strs else None
    max_length = max_model_len(service, choice)
    if isinstance(body.prompt, list):
        return TokenizeReply(
            count=[len(ids) for ids in sequences], max_model_len=max_length, tokens=sequences, token_strs=strings
        )
    return TokenizeReply(
        count=len(sequences[0]),
        max_model_len=max_length,
        tokens=sequences[0],
        token_strs=strings[0] if strings is not None else None,
    )


def common_ids(tokenizations: list[Tokenization], inputs: list[Input]) -> list[list[int]]:
    """The token ids of each input. Raises InvalidInputError if they differ between models."""
    first, *others = (ids_of(tokenization, inputs) for tokenization in tokenizations)
    if any(other != first for other in others):
        raise InvalidInputError("the two models tokenize this differently; name one of them as model")
    return first


def ids_of(tokenization: Tokenization, inputs: list[Input]) -> list[list[int]]:
    found = []
    for outcome in tokenization.encode(inputs, "error"):
        if isinstance(outcome, InvalidInputError):
            raise outcome
        found.append([int(token_id) for token_id in outcome.token_ids])
    return found
