"""POST /classify: SGLang's if the body has `text` or `input_ids`, vLLM's if it has `input` or `messages`."""

import uuid
from typing import Annotated, Any

from pydantic import BaseModel, RootModel, WithJsonSchema

from app.api.compat.dialect import CompatBody, as_list
from app.api.compat.vllm import pooling
from app.api.compat.vllm.options import check_refused, unsupported
from app.api.inputs import TheService
from app.engine.inputs import Input, PromptResponse
from app.errors import InvalidInputError
from app.settings import Settings

PAIR = {"type": "array", "items": pooling.TEXT, "minItems": 2, "maxItems": 2}
LISTS_OF_IDS = {"type": "array", "items": pooling.TOKEN_IDS, "minItems": 1}


class ClassifyRequest(pooling.ClassificationRequest):
    """vLLM's fields, or SGLang's `text` or `input_ids`."""

    text: (
        Annotated[str | list[str] | list[list[str]], WithJsonSchema(pooling.one_or_more(pooling.TEXT, PAIR))] | None
    ) = None
    input_ids: (
        Annotated[list[int] | list[list[int]], WithJsonSchema({"anyOf": [pooling.TOKEN_IDS, LISTS_OF_IDS]})] | None
    ) = None
    rid: str | list[str] | None = None
    dimensions: Any = unsupported()
    input_embeds: Any = unsupported()
    image_data: Any = unsupported()
    video_data: Any = unsupported()
    audio_data: Any = unsupported()
    modalities: Any = unsupported()
    embed_override_token_id: Any = unsupported()
    embed_overrides: Any = unsupported()
    positional_embed_overrides: Any = unsupported()
    lora_path: Any = unsupported()
    lora_id: Any = unsupported()
    multi_item_delimiter_indices: Any = unsupported()
    token_indices_to_pool: Any = unsupported()
    decision_layout: Any = unsupported()
    return_pooled_hidden_states: Any = unsupported(False)
    return_prompt_token_ids: Any = unsupported(False)

    def sglang_inputs(self, settings: Settings) -> tuple[list[Input], bool]:
        """The inputs, and whether the body has a list of them. Raises InvalidInputError."""
        if self.text is not None and self.input_ids is not None:
            raise InvalidInputError("the request has both text and input_ids; send one of them")
        if self.input is not None or self.messages is not None:
            raise InvalidInputError(
                "the request has both SGLang's text or input_ids and vLLM's input or messages; send one of them"
            )
        self.check_chat_only()
        name = "text" if self.text is not None else "input_ids"
        given = self.text if self.text is not None else self.input_ids
        entries = as_list(given, name)
        if name == "text" and isinstance(entries[0], list):
            return [Input(pair_of(texts, i), i, f"text[{i}]") for i, texts in enumerate(entries)], True
        with_special_tokens = self.add_special_tokens is not False
        inputs = pooling.engine_inputs(entries, name, settings, add_special_tokens=with_special_tokens)
        return inputs, entries is given

    def ids(self, num_inputs: int) -> list[str]:
        """One id per input: from the request's `rid` (numbered if it is one for several inputs), or new ones."""
        if isinstance(self.rid, list):
            if len(self.rid) != num_inputs:
                raise InvalidInputError(f"rid has {len(self.rid)} entries for {num_inputs} inputs; send one per input")
            return self.rid
        if self.rid is not None:
            return [self.rid] if num_inputs == 1 else [f"{self.rid}_{i}" for i in range(num_inputs)]
        return [uuid.uuid4().hex for _ in range(num_inputs)]


class MetaInfo(CompatBody):
    id: str
    prompt_tokens: int
    truncated: bool


class SGLangResult(BaseModel):
    embedding: list[float]
    meta_info: MetaInfo


class SGLangResults(RootModel[list[SGLangResult]]):
    pass


def pair_of(texts: Any, i: int) -> PromptResponse:
    """A cross-encoder's pair of a query and a document, scored as prompt and response."""
    if len(texts) != 2:  # noqa: PLR2004 - a pair
        raise InvalidInputError(f"text[{i}] has {len(texts)} texts; send pairs of two, or a list of texts", i)
    return PromptResponse(texts[0], texts[1])


async def classify(body: ClassifyRequest, service: TheService) -> pooling.PoolingReply | SGLangResult | SGLangResults:
    check_refused(body)
    if body.text is None and body.input_ids is None:
        return await pooling.classify(body, service)
    inputs, is_list = body.sglang_inputs(service.settings)
    ids = body.ids(len(inputs))
    has_boundary = isinstance(inputs[0].form, PromptResponse)
    results, _ = await pooling.score_inputs(body, service, inputs, has_boundary=has_boundary)
    answers = [
        SGLangResult(
            embedding=[result.value(activation=body.activates(default=False))],
            meta_info=MetaInfo(id=own_id, prompt_tokens=result.num_tokens, truncated=result.truncated),
        )
        for result, own_id in zip(results, ids, strict=True)
    ]
    return SGLangResults(answers) if is_list else answers[0]
