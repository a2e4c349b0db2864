"""The forms of an input: prompt and response, messages, text, a rendered chat, a rollout, token ids. Knows no tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Truncation = Literal["error", "prompt", "left", "right"]


@dataclass(frozen=True, slots=True)
class PromptResponse:
    prompt: str
    response: str

    @property
    def num_chars(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How one conversation is rendered, if different from the checkpoint's text rules."""

    add_generation_prompt: bool | None = None
    """None: by the text rules."""
    continue_final_message: bool = False
    """Leave the last turn open: render nothing after its content."""
    add_special_tokens: bool = False
    """Put the tokenizer's own special tokens around the rendered text, but never a second BOS."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Messages:
    messages: tuple[dict[str, Any], ...]
    options: ChatOptions = ChatOptions()

    @property
    def num_chars(self) -> int:
        return num_chars(self.messages)


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    add_special_tokens: bool = True

    @property
    def num_chars(self) -> int:
        return len(self.text)


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation that a client rendered with special tokens, up to and including the response.

    If its text matches the checkpoint's chat template, it gets the template's BOS and, with `close`, the template's end of
    the last turn. Any other text is tokenized as it is.
    """

    text: str
    close: bool = True
    add_special_tokens: bool = True
    """Whether a text that does not match the template gets the tokenizer's own special tokens."""

    @property
    def num_chars(self) -> int:
        return len(self.text)


@dataclass(frozen=True, slots=True)
class Rollout:
    """The prompt's messages, and the response as it was generated, which may end with the end-of-turn token.

    With `close` the template closes the turn; without it nothing follows the response.
    """

    prompt: tuple[dict[str, Any], ...]
    response: str
    close: bool = True

    @property
    def num_chars(self) -> int:
        return len(self.response) + num_chars(self.prompt)


@dataclass(frozen=True, slots=True)
class TokenIds:
    token_ids: list[int]

    @property
    def num_chars(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a request. Error messages name it by `location`, error bodies by its index `item`.

    `max_length`, in tokens, replaces the model's limit for this input.
    """

    form: PromptResponse | Messages | Text | RenderedChat | Rollout | TokenIds
    item: int = 0
    location: str = "items[0]"
    max_length: int | None = None

    @property
    def num_chars(self) -> int:
        """Characters to be tokenized, without the text that a template adds."""
        return self.form.num_chars


def num_chars(messages: tuple[dict[str, Any], ...]) -> int:
    return sum(len(str(part)) for message in messages for key, part in message.items() if key != "role")
