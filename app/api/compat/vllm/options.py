"""Request options that vLLM's pooling routes share: each is supported, or rejected with vLLM's message.

Fields that are not declared here are ignored, as vLLM ignores unknown fields.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from app.api.compat.dialect import ChatMessage, CompatBody, choose_truncation, models_of
from app.engine.inputs import ChatOptions
from app.errors import InvalidInputError
from app.service import Service
from app.settings import Truncation

WHOLE_LENGTH = -1
"""`truncate_prompt_tokens`: truncate to the model's length."""


def unsupported(*allowed: float | str | bool | dict[str, Any]) -> Any:
    """An option that is rejected (see `REFUSALS`) unless it has one of these values, which have no effect."""
    return Field(None, json_schema_extra={"enum": [None, *allowed]})


REFUSALS: Mapping[str, tuple[tuple[object, ...], str]] = {
    "padding": (("do_not_pad",), "padding={value} is not supported: no prompt is padded; leave it out"),
    "priority": ((0,), "priority={value} needs priority scheduling, which is not supported; leave it out"),
    "mm_processor_kwargs": (({},), "mm_processor_kwargs are not supported: the models take text; leave them out"),
    "media_io_kwargs": (({},), "media_io_kwargs are not supported: the models take text; leave them out"),
    "cache_salt": ((), "cache_salt is not supported: all requests share one prefix cache; leave it out"),
    "normalize": ((), "Parameter `normalize` was removed; use `use_activation` instead."),
    "dimensions": ((), "dimensions is currently not supported (received dimensions={value}): a score is one number"),
    "chat_template": (
        (),
        (
            "Chat template is passed with request, but templates of requests are not trusted here. "
            "Refused request with untrusted chat template."
        ),
    ),
    "max_tokens_per_query": ((0,), "max_tokens_per_query={value} is not supported; use truncate_prompt_tokens"),
    "max_tokens_per_doc": ((0,), "max_tokens_per_doc={value} is not supported; use truncate_prompt_tokens"),
    "lora_path": ((), "lora_path={value} is not supported; load the adapter as a model of its own"),
    "instruct": ((), "instruct is not supported: the checkpoint's chat template has no place for it; leave it out"),
}
"""By option: the values without effect, and the error message for any other value."""
PLAIN_REFUSALS: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("data", "tool_choice", "reasoning_effort", "input_embeds", "image_data", "video_data"), ()),
    **dict.fromkeys(("audio_data", "modalities", "embed_override_token_id", "embed_overrides", "lora_id"), ()),
    **dict.fromkeys(("positional_embed_overrides", "multi_item_delimiter_indices", "token_indices_to_pool"), ()),
    **dict.fromkeys(("decision_layout", "label_token_ids", "score_extraction_token", "query_embed_overrides"), ()),
    **dict.fromkeys(("item_embed_overrides",), ()),
    **dict.fromkeys(("return_pooled_hidden_states", "return_prompt_token_ids", "return_token_logprobs"), (False,)),
    **dict.fromkeys(("apply_softmax", "item_first"), (False,)),
    "temperature": (1, 1.0),
}
"""Unsupported options without a message of vLLM's, each with the values that have no effect."""


def check_refused(body: CompatBody) -> None:
    """Raises InvalidInputError for an unsupported option that would change the answer."""
    for name in ("max_tokens_per_query", "max_tokens_per_doc"):
        value = getattr(body, name, None)
        if isinstance(value, int) and value < 0:
            raise InvalidInputError(f"{name} must be a non-negative integer")
    for name, (allowed, words) in REFUSALS.items():
        value = getattr(body, name, None)
        if not has_no_effect(value, allowed):
            raise InvalidInputError(words.format(value=shown(value)))
    for name, allowed in PLAIN_REFUSALS.items():
        value = getattr(body, name, None)
        if not has_no_effect(value, allowed):
            raise InvalidInputError(f"{name} is {shown(value)}, which is not supported; leave it out")


def has_no_effect(value: object, allowed: tuple[object, ...]) -> bool:
    return value is None or any(value == each and type(value) is type(each) for each in allowed)


def shown(value: object) -> str:
    return f"{value!r:.40}"


class SharedOptions(CompatBody):
    model: str | None = None
    request_id: str | None = Field(None, max_length=1000, description="Comes back in the answer's id.")
    use_activation: bool | None = Field(None, description="true: probabilities in place of raw scores.")
    truncate_prompt_tokens: (
        Annotated[int, WithJsonSchema({"anyOf": [{"const": WHOLE_LENGTH}, {"type": "integer", "minimum": 1}]})] | None
    ) = Field(None, description="Cut to so many tokens; -1: to the model's length.")
    truncation_side: Literal["left", "right"] | None = None
    padding: Any = unsupported("do_not_pad")
    priority: Any = unsupported(0)
    mm_processor_kwargs: Any = unsupported({})
    cache_salt: Any = unsupported()
    normalize: Any = unsupported()

    def activates(self, default: bool) -> bool:
        return default if self.use_activation is None else self.use_activation

    def truncation(self, service: Service, *, has_boundary: bool) -> Truncation:
        if self.truncate_prompt_tokens is not None or self.truncation_side is not None:
            return self.truncation_side or "left"
        return choose_truncation(service.settings, has_boundary=has_boundary)

    def max_length(self, service: Service, choice: str) -> int | None:
        """`truncate_prompt_tokens`, if it is a number of tokens. Raises InvalidInputError if it exceeds the models' limit."""
        wanted = self.truncate_prompt_tokens
        if wanted is None or wanted == WHOLE_LENGTH:
            return None
        limit = max_model_len(service, choice)
        if wanted > limit:
            raise InvalidInputError(
                f"truncate_prompt_tokens value ({wanted}) is greater than max_model_len ({limit}). "
                "Please request a smaller truncation size."
            )
        if wanted < 1:
            raise InvalidInputError(
                f"truncate_prompt_tokens is {wanted}; send at least 1, or -1 for the model's length"
            )
        return wanted


class ChatRendering(CompatBody):
    """Options of a conversation in `messages`."""

    messages: list[ChatMessage] | None = Field(None, min_length=1, description="One conversation.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool | None = Field(
        None, description="By default true for texts and false for messages, whose template has its own."
    )
    chat_template: Any = unsupported()
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Variables of the checkpoint's chat template."
    )
    media_io_kwargs: Any = unsupported({})
    tools: list[dict[str, Any]] | None = Field(None, description="Rendered by templates that render tools.")

    def chat_options(self, *, add_generation_prompt: bool | None = None) -> ChatOptions:
        """Raises InvalidInputError for options that contradict each other. `add_generation_prompt` is the route's default."""
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidInputError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
        wanted = self.add_generation_prompt if self.add_generation_prompt is not None else add_generation_prompt
        return ChatOptions(
            add_generation_prompt=False if self.continue_final_message else wanted,
            continue_final_message=self.continue_final_message,
            add_special_tokens=bool(self.add_special_tokens),
            template_kwargs=self.chat_template_kwargs or {},
            tools=tuple(self.tools or ()),
        )

    def check_chat_only(self) -> None:
        """Raises InvalidInputError for options of messages in a request without messages."""
        for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"):
            if getattr(self, name):
                raise InvalidInputError(f"{name} is for messages, and the request has none; leave it out")


def max_model_len(service: Service, choice: str) -> int:
    """The maximum length in tokens that every model of the choice accepts."""
    models = service.ready_engine().models
    return min(models[name].tokenization.max_length for name in models_of(choice))
