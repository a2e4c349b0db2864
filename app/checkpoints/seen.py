"""What a checkpoint's files hold, from their headers alone, and the declaration that would let it be served.

For `reward-service inspect`. No weights are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.checkpoints.architecture import architecture_of, is_classifier, is_language_model
from app.checkpoints.layout import in_words, layout_of, suggested_declaration
from app.checkpoints.parts import empty_trunk, trunk_names
from app.checkpoints.saved import Saved
from app.errors import ModelRefusedError

JUDGE = {"head": {"positive": [" Yes"], "negative": [" No"]}}


@dataclass(frozen=True, slots=True)
class Seen:
    """A trunk that transformers has, and what is beside it in the files."""

    trunk: str  # its class
    num_parameters: int
    hidden_size: int
    prefix: str  # before the trunk's names in the files
    head_shapes: Mapping[str, tuple[int, ...]]  # all that is neither the trunk's nor the output embedding's
    has_output_embedding: bool
    is_classifier: bool  # of transformers, by its architecture's name
    num_labels: int = 1

    @property
    def beside(self) -> str:
        """The tensors beside the trunk, in words; empty where there are none."""
        return in_words(self.head_shapes)

    def declaration(self) -> dict[str, Any] | None:
        """A reward.json that would serve the checkpoint, if it is meant so; None where nothing can be read as a score."""
        if self.is_classifier and self.num_labels > 1:
            return {"map": {"output": 0}}
        if self.is_classifier and any(name.startswith("classifier") for name in self.head_shapes):
            return None  # an encoder's: its class computes more between the states and this layer
        if self.head_shapes:
            return suggested_declaration(self.head_shapes, self.hidden_size)
        return JUDGE if self.has_output_embedding else None


def look_at(source: str, saved: Saved) -> Seen | None:
    """None where transformers has no plain model of this type, or its trunk is not in the files."""
    trunk = empty_trunk(saved)
    try:
        layout = layout_of(source, saved.weights, trunk_names(trunk)) if trunk is not None else None
    except ModelRefusedError:  # two trunks
        layout = None
    if trunk is None or layout is None:
        return None
    architecture = architecture_of(saved.raw_config.get("architectures"))
    return Seen(
        trunk=type(trunk).__name__,
        num_parameters=sum(weight.numel() for weight in trunk.parameters()),
        hidden_size=trunk_names(trunk).hidden_size,
        prefix=layout.prefix,
        head_shapes=layout.head_shapes,
        has_output_embedding=bool(layout.lm_head)
        or is_language_model(architecture)
        or "ConditionalGeneration" in architecture,
        is_classifier=is_classifier(architecture),
        num_labels=saved.config.num_labels or 1,
    )
