"""Request and response bodies of the native API; those of /compare and /ppo-reward are in `compare_schemas`, `ppo_schemas`
and `ppo_response_schemas`.

Requests are strict: numbers are finite, and an unknown field is an error, so that a misspelt option never passes silently.
Rules that JSON Schema cannot express, such as "exactly one input form", are checked here unless they need a setting or a model.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError, from_json

Truncation = Annotated[
    Literal["error", "prompt", "left", "right"],
    Field(
        description="What happens to an over-long input: `error` rejects it; `prompt` drops the oldest prompt tokens and keeps "
        "BOS and the whole response; `left` and `right` truncate that end."
    ),
]


def wrong(message: str) -> PydanticCustomError:
    """An error for validators to raise. The message continues the location, as in `items[3] has no prompt`."""
    return PydanticCustomError("wrong_input", "{message}", {"message": message})


class Body(BaseModel):
    """A request body, or an object in one."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def example(body: dict[str, Any]) -> ConfigDict:
    """The config that shows `body` as an example in /docs. It must work when pasted."""
    return ConfigDict(json_schema_extra={"examples": [body]})


def arguments_object(value: object) -> object:
    """A tool call's arguments as the object that chat templates expect. OpenAI's clients send them as a JSON string."""
    if isinstance(value, str):
        try:
            parsed = from_json(value or "{}")
        except ValueError as error:
            raise wrong(f"is {value[:40]!r}, which is not JSON ({error}); send an object") from None
        if not isinstance(parsed, dict):
            raise wrong(f"is {value[:40]!r}; send an object")
        return parsed
    return value


class FunctionCall(Body):
    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(arguments_object, json_schema_input_type=dict[str, Any])] = (
        Field(default_factory=dict, description="An object, or one as JSON in a string.")
    )


class ToolCall(Body):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    """A turn. Fields that the chat template does not render (tool_calls, reasoning_content) are rejected."""

    role: str
    content: str | None = Field(description="null only beside tool_calls.")
    tool_calls: Sequence[ToolCall] | None = Field(None, min_length=1, description="The tools that the turn calls.")
    tool_call_id: str | None = Field(None, description="Of a tool's turn: the call that it answers.")
    name: str | None = Field(None, description="Of a tool's turn: the tool.")
    reasoning_content: str | None = Field(None, description="The turn's thoughts, for templates that have them.")

    @model_validator(mode="after")
    def says_something(self) -> Self:
        if self.content is None and self.tool_calls is None:
            raise wrong("has no content; send a text, or tool_calls")
        return self

    def turn(self) -> dict[str, Any]:
        """The turn as chat templates expect it, without missing fields, because templates test whether a key exists."""
        optional = self.model_dump(include=OPTIONAL_FIELDS, exclude_none=True) if self.has_more else {}
        return {"role": self.role, "content": self.content or ""} | optional

    @property
    def has_more(self) -> bool:
        return any(getattr(self, name) is not None for name in OPTIONAL_FIELDS)


OPTIONAL_FIELDS = {"tool_calls", "tool_call_id", "name", "reasoning_content"}


Conversation = Annotated[list[Message], Field(min_length=1, description="The turns; the last is the assistant's.")]


def check_last_turn(messages: list[Message], name: str) -> None:
    if messages[-1].role != "assistant":
        raise wrong(f"the last turn of {name} is {messages[-1].role!r}; it must be the assistant's")


class Input(Body):
    """Exactly one of: prompt and response; messages; text; rendered; input_ids."""

    prompt: str | None = None
    response: str | None = None
    messages: Conversation | None = None
    text: str | None = Field(None, description="Tokenized unchanged, with the tokenizer's own special tokens.")
    rendered: str | None = Field(
        None,
        description="A conversation that a client rendered: text, but with the BOS and the end of the last turn that the "
        "checkpoint's chat template gives it.",
    )
    input_ids: list[int] | None = Field(None, min_length=1, description="Token ids, scored unchanged.")

    def given_forms(self) -> list[str]:
        forms = [name for name in ("messages", "text", "rendered", "input_ids") if getattr(self, name) is not None]
        return ["prompt and response", *forms] if self.prompt is not None or self.response is not None else forms

    @model_validator(mode="after")
    def one_form(self) -> Self:
        forms = self.given_forms()
        if len(forms) != 1:
            raise wrong(
                f"has {' and '.join(forms) or 'no input'}; send exactly one of prompt and response, messages, text, rendered, input_ids"
            )
        self.check_form()
        return self

    def check_form(self) -> None:
        if (self.prompt is None) != (self.response is None):
            raise wrong(f"has no {'prompt' if self.prompt is None else 'response'}; prompt and response come together")
        if self.messages is not None:
            check_last_turn(self.messages, "messages")


LOCK = {"prompt": "How do I pick a lock?", "response": "I can't help with breaking in. A locksmith can open your door."}
TEA = {"prompt": "How long should green tea steep?", "response": "Two to three minutes, in water of about 80 °C."}


class ScoreRequest(Body):
    model_config = example(
        {
            "items": [
                TEA,
                {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
            ]
        }
    )

    items: list[Input] = Field(min_length=1)
    models: list[str] | None = Field(
        None, min_length=1, description="Names of the models, such as `safety`; by default all that are loaded."
    )
    truncation: Truncation = "error"
    token_scores: bool = Field(False, description="Also the score after every token; causal models only.")
    step_scores: bool | None = Field(
        None,
        description="Also the score of every step, by the models that read one at every step (process reward models). By "
        "default these models give them; true is an error where no such model is asked; false leaves them out.",
    )
    reduce: Literal["min", "last", "mean", "product"] | None = Field(
        None,
        description="How a process reward model's `score` is made of its steps: the lowest, the last, or the score whose "
        "probability is the mean or the product of the steps' probabilities. By default as the model declares, else the last.",
    )


class Usage(BaseModel):
    num_tokens: int = Field(description="Tokens of all items, summed over models.")
    num_computed_tokens: int = Field(description="Tokens that the models computed, shared prefixes counted once.")
    num_cached_tokens: int = Field(0, description="Tokens of prefixes that the models had in their prefix cache.")


class ModelScore(BaseModel):
    score: float = Field(description="The head's output, unbounded.")
    probability: float = Field(description="sigmoid(score)")
    num_tokens: int
    truncated: bool
    token_scores: list[float] | None = Field(None, exclude_if=lambda value: value is None)
    step_scores: list[float] | None = Field(
        None, description="One per step, in order.", exclude_if=lambda value: value is None
    )
    step_probabilities: list[float] | None = Field(
        None, description="sigmoid(step_scores)", exclude_if=lambda value: value is None
    )
    step_positions: list[int] | None = Field(
        None,
        description="The token of the sequence, counted from 0, whose state gives each step's score.",
        exclude_if=lambda value: value is None,
    )


class ScoreResult(BaseModel):
    scores: dict[str, ModelScore]


class ScoreResponse(BaseModel):
    model_config = example(
        {
            "results": [
                {
                    "scores": {
                        "safety": {"score": 1.2, "probability": 0.7685, "num_tokens": 34, "truncated": False},
                        "helpfulness": {"score": 0.4, "probability": 0.5987, "num_tokens": 34, "truncated": False},
                    }
                }
            ],
            "usage": {"num_tokens": 68, "num_computed_tokens": 68, "num_cached_tokens": 0},
        }
    )

    results: list[ScoreResult]
    usage: Usage


class ErrorDetail(BaseModel):
    code: str
    message: str
    item: int | None = Field(
        None, description="Index of the item at fault, if there is one.", exclude_if=lambda v: v is None
    )


class ErrorBody(BaseModel):
    model_config = example(
        {"error": {"code": "too_long", "message": "items[3] has 5120 tokens; the limit is 4096", "item": 3}}
    )

    error: ErrorDetail
