"""`/v1/score` and the rerank routes. A pair of a query and a document is scored as prompt and response.

vLLM, Jina and Cohere share the answer of `/v1/rerank`; TEI's `/rerank` has `texts` instead of `documents`. Scores are raw
unless the request asks for an activation. (`/score` is the native route, so vLLM's `/score` is served only as `/v1/score`.)
"""

import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.api.compat import tei
from app.api.compat.dialect import CompatBody, as_list
from app.api.compat.vllm.options import SharedOptions, check_refused, unsupported
from app.api.compat.vllm.pooling import PoolingUsage, reply_fields, score_inputs
from app.api.inputs import TheService
from app.api.schemas import TEA, example
from app.engine.inputs import ChatOptions, Input, Messages, PromptResponse
from app.errors import InvalidInputError

Texts = str | Annotated[list[str], Field(min_length=1)]
FORMS = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))


class ScoringOptions(SharedOptions):
    max_tokens_per_query: Any = unsupported(0)
    max_tokens_per_doc: Any = unsupported(0)
    instruction: str | None = Field(None, description="As chat_template_kwargs with the key instruction.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Variables of the checkpoint's chat template."
    )

    def pair(self, query: str, document: str, i: int, location: str) -> Input:
        given = {} if self.instruction is None else {"instruction": self.instruction}
        variables = given | (self.chat_template_kwargs or {})
        if not variables:
            return Input(PromptResponse(query, document), i, location)
        turns = ({"role": "user", "content": query}, {"role": "assistant", "content": document})
        return Input(Messages(turns, ChatOptions(template_kwargs=variables)), i, location)


class PairScoreRequest(ScoringOptions):
    """`queries` with `documents` or `items`, `text_1` with `text_2`, or `data_1` with `data_2`: 1 to 1, 1 to n or n to n."""

    model_config = example({"queries": TEA["prompt"], "documents": [TEA["response"], "tea tea tea"]})

    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    label_token_ids: Any = unsupported()
    apply_softmax: Any = unsupported(False)
    item_first: Any = unsupported(False)
    temperature: Any = unsupported(1, 1.0)
    return_token_logprobs: Any = unsupported(False)
    return_pooled_hidden_states: Any = unsupported(False)
    score_extraction_token: Any = unsupported()
    embed_override_token_id: Any = unsupported()
    query_embed_overrides: Any = unsupported()
    item_embed_overrides: Any = unsupported()

    def inputs(self) -> list[Input]:
        names = {name for form in FORMS for name in form if getattr(self, name) is not None}
        form = next((form for form in FORMS if set(form) == names), None)
        if form is None:
            raise InvalidInputError(
                f"the request has {', '.join(sorted(names)) or 'no texts'}; send exactly one of queries and documents, "
                "queries and items, text_1 and text_2, data_1 and data_2"
            )
        queries, documents = (as_list(getattr(self, name), name) for name in form)
        if len(queries) not in {1, len(documents)}:
            raise InvalidInputError(
                "Input lengths must be either 1:1, 1:N or N:N; "
                f"{form[0]} has {len(queries)} entries and {form[1]} {len(documents)}"
            )
        queries = queries * len(documents) if len(queries) == 1 else queries
        return [
            self.pair(query, document, i, f"{form[1]}[{i}]")
            for i, (query, document) in enumerate(zip(queries, documents, strict=True))
        ]


class ScoreData(BaseModel):
    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreReply(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreData]
    usage: PoolingUsage


class TextDocument(CompatBody):
    text: str


class RerankRequest(ScoringOptions):
    model_config = example({"query": TEA["prompt"], "documents": [TEA["response"], "tea tea tea"], "top_n": 1})

    query: str
    documents: Annotated[list[str | TextDocument], Field(min_length=1)] | str
    top_n: int | None = Field(None, ge=0, description="How many of the best documents come back; 0: all.")
    return_documents: bool = True
    instruct: Any = unsupported()

    def texts_of_documents(self) -> list[str]:
        given = [self.documents] if isinstance(self.documents, str) else self.documents
        return [each if isinstance(each, str) else each.text for each in given]


class RerankResult(BaseModel):
    index: int
    document: TextDocument | None = Field(None, exclude_if=lambda value: value is None)
    relevance_score: float


class RerankUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class RerankReply(BaseModel):
    id: str
    model: str
    usage: RerankUsage
    results: list[RerankResult]


async def score(body: PairScoreRequest, service: TheService) -> ScoreReply:
    check_refused(body)
    results, model = await score_inputs(body, service, body.inputs(), has_boundary=True)
    activation = body.activates(service.settings.compat_activation)
    data = [ScoreData(index=i, score=result.value(activation=activation)) for i, result in enumerate(results)]
    return ScoreReply(data=data, **reply_fields(body, "score", model, results))


async def rerank(body: RerankRequest, service: TheService) -> RerankReply:
    check_refused(body)
    texts = body.texts_of_documents()
    inputs = [body.pair(body.query, text, i, f"documents[{i}]") for i, text in enumerate(texts)]
    results, model = await score_inputs(body, service, inputs, has_boundary=True)
    activation = body.activates(service.settings.compat_activation)
    ranked = sorted(range(len(texts)), key=lambda i: results[i].score, reverse=True)
    num_tokens = sum(result.num_tokens for result in results)
    return RerankReply(
        id=f"rerank-{body.request_id or uuid.uuid4().hex}",
        model=model,
        usage=RerankUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
        results=[
            RerankResult(
                index=i,
                document=TextDocument(text=texts[i]) if body.return_documents else None,
                relevance_score=results[i].value(activation=activation),
            )
            for i in ranked[: body.top_n or None]
        ],
    )


class AnyRerankRequest(RerankRequest, tei.RankOptions):
    """vLLM's with `documents`, or text-embeddings-inference's with `texts`."""

    documents: Annotated[list[str | TextDocument], Field(min_length=1)] | str | None = None  # type: ignore[assignment] # texts may come in place of them
    texts: Annotated[list[str], Field(min_length=1)] | None = None


async def any_rerank(body: AnyRerankRequest, service: TheService) -> RerankReply | tei.Ranks:
    if (body.documents is None) == (body.texts is None):
        given = "neither documents nor texts" if body.texts is None else "both documents and texts"
        raise InvalidInputError(
            f"the request has {given}; send exactly one of documents (vLLM's) and texts (text-embeddings-inference's)"
        )
    if body.texts is None:
        return await rerank(body, service)
    return await tei.ranks(body, body.query, body.texts, service)
