"""text-embeddings-inference: POST /predict, /rerank and /. Sigmoid unless `raw_scores`, as TEI does.

A string is one input, a flat list of two strings one *pair*, a list of lists a batch of either. A pair is scored as
prompt and response.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, RootModel, WithJsonSchema
from starlette.responses import Response

from app.api.compat.dialect import (
    COMPAT_TAGS,
    CompatBody,
    choose_model,
    choose_truncation,
    error_json,
    rendered_chat,
    select,
)
from app.api.errors import ErrorFormat
from app.api.inputs import TheService
from app.api.schemas import example
from app.engine.inputs import Input, PromptResponse
from app.errors import (
    BodyTooLargeError,
    DeadlineExceededError,
    InferenceFailedError,
    InvalidInputError,
    InvalidJSONError,
    NonFiniteScoreError,
    OverloadedError,
    RequestError,
    TooLongError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from app.service import Service
from app.settings import Settings, Truncation


class EmptyInputsError(InvalidInputError):
    code, status = "empty", 400


class NotABatchError(InvalidInputError):
    """`inputs` has none of the three shapes."""


KINDS: list[tuple[type[RequestError], int, str]] = [
    (EmptyInputsError, 400, "Empty"),
    (InvalidJSONError, 400, "Validation"),
    (NotABatchError, 422, "Tokenizer"),
    (NonFiniteScoreError, 424, "Backend"),
    (InferenceFailedError, 424, "Backend"),
    (TooLongError, 413, "Validation"),
    (BodyTooLargeError, 413, "Validation"),
    (UnsupportedMediaTypeError, 415, "Validation"),
    (InvalidInputError, 413, "Validation"),
    (OverloadedError, 429, "Overloaded"),
    (DeadlineExceededError, 429, "Overloaded"),
    (UnavailableError, 503, "Unhealthy"),
]
"""The first class that matches determines status and error_type."""


class TEIError(BaseModel):
    error: str
    error_type: str


def write_error(error: RequestError) -> Response:
    status, kind = next((s, k) for cls, s, k in KINDS if isinstance(error, cls))
    return error_json({"error": error.message, "error_type": kind}, status, error)


ERRORS = ErrorFormat(write_error, TEIError, (400, 413, 415, 422, 424, 429, 503), COMPAT_TAGS)


TEXT_OR_PAIR = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}
INPUTS_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        TEXT_OR_PAIR,
        {"type": "array", "items": TEXT_OR_PAIR, "minItems": 1},
    ]
}
"""What `sequences` and `engine_input` accept. They reject other values with TEI's own errors."""


class Options(CompatBody):
    raw_scores: bool = Field(False, description="true: raw scores in place of probabilities.")
    truncate: bool | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    model: str | None = None

    def cut(self, service: Service, *, has_boundary: bool) -> Truncation:
        """The truncation by the body's own flags, or by the setting if it has none."""
        match self.truncate:
            case None:
                return choose_truncation(service.settings, has_boundary=has_boundary)
            case False:
                return "error"
            case True:
                return "left" if self.truncation_direction.lower() == "left" else "right"


class PredictRequest(Options):
    model_config = example({"inputs": [["How long should green tea steep?", "Two minutes."]], "raw_scores": True})

    inputs: Annotated[str | list[str] | list[list[str]], WithJsonSchema(INPUTS_SCHEMA)]

    @property
    def is_batch(self) -> bool:
        return bool(self.inputs) and isinstance(self.inputs[0], list)

    def sequences(self) -> list[list[str]]:
        """The batch; a single input or pair is a batch of one."""
        if not self.inputs:
            raise EmptyInputsError("`inputs` cannot be empty")
        if isinstance(self.inputs, str):
            return [[self.inputs]]
        return (
            [[one] if isinstance(one, str) else one for one in self.inputs]
            if self.is_batch
            else [list(map(str, self.inputs))]
        )


class Prediction(BaseModel):
    score: float
    label: str = "LABEL_0"


class Predictions(RootModel[list[Prediction] | list[list[Prediction]]]):
    """Of a single input, or of each input of a batch."""


def engine_input(texts: list[str], i: int, settings: Settings) -> Input:
    location = f"inputs[{i}]"
    match texts:
        case [text]:
            return Input(rendered_chat(settings, text), i, location)
        case [prompt, response]:
            return Input(PromptResponse(prompt, response), i, location)
    raise NotABatchError(
        f"`{location}` has {len(texts)} texts; send one, or two for a pair, or a list of such lists", i
    )


async def predict(body: PredictRequest, service: TheService) -> Predictions:
    inputs = [engine_input(texts, i, service.settings) for i, texts in enumerate(body.sequences())]
    has_boundary = all(isinstance(item.form, PromptResponse) for item in inputs)
    results = await select(
        service,
        inputs,
        choose_model(service, body.model),
        truncation=body.cut(service, has_boundary=has_boundary),
    )
    predictions = [Prediction(score=result.value(activation=not body.raw_scores)) for result in results]
    return Predictions([[one] for one in predictions] if body.is_batch else predictions)


class RankOptions(Options):
    return_text: bool = False


class RootRequest(RankOptions):
    """The body of /predict, or `query` and `texts` to be ranked."""

    model_config = example({"inputs": "How long should green tea steep? Two minutes.", "raw_scores": True})

    inputs: Annotated[str | list[str] | list[list[str]], WithJsonSchema(INPUTS_SCHEMA)] | None = None
    query: str | None = None
    texts: list[str] | None = Field(None, min_length=1)


class Rank(BaseModel):
    index: int
    text: str | None = Field(None, exclude_if=lambda value: value is None)
    score: float


class Ranks(RootModel[list[Rank]]):
    """Best first."""


async def ranks(options: RankOptions, query: str, texts: list[str], service: Service) -> Ranks:
    """The texts as responses to the query, best first."""
    inputs = [Input(PromptResponse(query, text), i, f"texts[{i}]") for i, text in enumerate(texts)]
    results = await select(
        service, inputs, choose_model(service, options.model), truncation=options.cut(service, has_boundary=True)
    )
    best = sorted(range(len(texts)), key=lambda i: results[i].score, reverse=True)
    return Ranks(
        [
            Rank(
                index=i,
                text=texts[i] if options.return_text else None,
                score=results[i].value(activation=not options.raw_scores),
            )
            for i in best
        ]
    )


async def root(body: RootRequest, service: TheService) -> Predictions | Ranks:
    if body.inputs is not None and body.query is None and body.texts is None:
        return await predict(PredictRequest.model_construct(**{**dict(body), "inputs": body.inputs}), service)
    if body.inputs is not None or body.query is None or body.texts is None:
        given = [name for name in ("inputs", "query", "texts") if getattr(body, name) is not None]
        raise InvalidInputError(
            f"the request has {' and '.join(given) or 'no inputs'}; send either inputs, or query with texts"
        )
    return await ranks(body, body.query, body.texts, service)
