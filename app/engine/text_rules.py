"""A checkpoint's rules for turning texts into token ids, if they differ from the tokenizer's defaults.

`app.checkpoints` sets them (from settings, `reward.json`, a preset or the family's rule), `tokenization` applies them. Knows
neither files nor tokenizers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StepRule:
    """How a process reward model's response becomes tokens, step by step.

    The response is split at `separator`. Each step, even an empty one, is tokenized by itself and followed by `mark_ids`, so
    that no token spans the end of a step and the mark. Nothing follows the last mark.
    """

    separator: str
    mark_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextRules:
    """None means the tokenizer's default."""

    chat_template: str | None = None
    """Jinja source that replaces the tokenizer's own template."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template, such as Granite Guardian's `guardian_config`."""
    system: str | None = None
    """The system message that a conversation without one gets."""
    add_bos: bool | None = None
    """Whether a rendered conversation or text begins with one BOS."""
    add_eos: bool | None = None
    """Whether it ends with one EOS: it is added unless the last token already is one."""
    append_ids: tuple[int, ...] = ()
    """Token ids appended to the sequence. They are ids because a suffix in the text could merge with the token before it."""
    append_unless_present: bool = False
    """Do not append `append_ids` if the sequence already ends in them."""
    generation_prompt: bool = False
    """Render the template with `add_generation_prompt=True`: the score is read where the model would answer."""
    pair_encoding: bool | None = None
    """Whether a prompt and a response are tokenized as a pair, with separator and token types. None: only for encoders
    without a chat template."""
    steps: StepRule | None = None
    """If given, the template renders only the prompt, and this rule tokenizes the response."""
