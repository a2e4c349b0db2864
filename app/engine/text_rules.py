"""How a checkpoint's texts become token ids, where that differs from its tokenizer's own habits.

A value only: `app.checkpoints` fills it (from settings, `reward.json`, a preset or the family's rule), `tokenization`
follows it. Knows neither files nor tokenizers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StepRule:
    """How a process reward model's response becomes tokens, step by step.

    The response is split at `separator`. Every step, an empty one too, is tokenized by itself and followed by `mark_ids`, so
    that no token holds the end of a step and the mark together. Nothing follows the last mark.
    """

    separator: str
    mark_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextRules:
    """None means: as the tokenizer does it."""

    chat_template: str | None = None
    """Jinja source that replaces the tokenizer's own template."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template, such as Granite Guardian's `guardian_config`."""
    system: str | None = None
    """The system turn that a conversation gets when it has none."""
    add_bos: bool | None = None
    """Whether a rendered conversation or text begins with one BOS."""
    add_eos: bool | None = None
    """Whether it ends with one EOS: it is added unless the last token already is one."""
    append_ids: tuple[int, ...] = ()
    """Token ids put after the sequence. As ids: text encoded together with a suffix can merge tokens across the seam."""
    append_unless_present: bool = False
    """Leave `append_ids` out where the sequence already ends in them."""
    generation_prompt: bool = False
    """Render the template with `add_generation_prompt=True`: the score is read where the model would answer."""
    pair_encoding: bool | None = None
    """Whether a prompt and a response go to the tokenizer as a pair, with its separator and token types. None: for
    encoders without a chat template."""
    steps: StepRule | None = None
    """The template renders the prompt alone; the response follows by this rule."""
