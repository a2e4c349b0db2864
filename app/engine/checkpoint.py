"""What the engine scores with: a loaded model, its tokenizer, its head and its text rules. `app.checkpoints` fills it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.engine.head import Head
from app.engine.text_rules import TextRules


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A reward model as it was loaded."""

    source: str
    version: str  # the hub's commit, or the weights' hash
    net: PreTrainedModel
    """The trunk, or a sequence classifier whose `base_model` is the trunk."""
    tokenizer: PreTrainedTokenizerBase
    device: torch.device  # where its inputs go: the first, where there are several
    weight_dtype: str  # of the trunk's matrices, such as "int8"
    max_length: int
    vocab_size: int
    head: Head
    is_causal: bool
    """Whether a token's state depends on the tokens up to it alone."""
    is_classifier: bool
    """Whether the net's own forward gives the head's outputs as `logits`."""
    text_rules: TextRules = field(default_factory=TextRules)
    about: Mapping[str, str] = field(default_factory=dict)
    """The parts in words, each with where it came from, for /info and `reward-service inspect`."""
    tags: tuple[str, ...] = ()
    """Those of the model card, such as `demo`."""

    @property
    def reads_as_its_class(self) -> bool:
        """Whether the net's own forward applies the head where this one does: it is a classifier, and no other position is
        declared."""
        position, pad = self.head.position, self.net.config.get_text_config().pad_token_id
        is_own = position.kind == "last_non_pad" or (position.kind == "last" and pad is None)
        return self.is_classifier and (not self.head.layers or is_own)
