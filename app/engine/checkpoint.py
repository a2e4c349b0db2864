"""A loaded checkpoint as the engine uses it: model, tokenizer, head and text rules. `app.checkpoints` builds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.engine.head import Head
from app.engine.text_rules import TextRules


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded reward model with all that is needed to score texts."""

    source: str
    version: str  # the hub's commit, or a hash of the weights
    net: PreTrainedModel
    """The trunk, or a sequence classifier whose `base_model` is the trunk."""
    tokenizer: PreTrainedTokenizerBase
    device: torch.device  # of the model's inputs: the first device if it is split across several
    weight_dtype: str  # of the trunk's matrices, such as "int8"
    max_length: int
    vocab_size: int
    head: Head
    is_causal: bool
    """Whether a token's state depends only on the tokens up to it."""
    is_classifier: bool
    """Whether the net's own forward returns the head's outputs as `logits`."""
    text_rules: TextRules = field(default_factory=TextRules)
    about: Mapping[str, str] = field(default_factory=dict)
    """A description of each part and its source, for /info and `reward-service inspect`."""
    tags: tuple[str, ...] = ()
    """The model card's tags, such as `demo`."""

    @property
    def own_forward_gives_score(self) -> bool:
        """Whether the net's own forward applies the head at `head.position`: the net is a classifier, and no other position is
        declared."""
        position, pad = self.head.position, self.net.config.get_text_config().pad_token_id
        is_own = position.kind == "last_non_pad" or (position.kind == "last" and pad is None)
        return self.is_classifier and (not self.head.layers or is_own)
