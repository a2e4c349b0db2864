"""Describes what a checkpoint's files contain, from their headers, and suggests a declaration for it.

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
class Contents:
    """A trunk that transformers has, and the other tensors in the files."""

    trunk: str  # its class
    num_parameters: int
    hidden_size: int
    prefix: str  # of the trunk's names in the files
    head_shapes: Mapping[str, tuple[int, ...]]  # of all tensors but the trunk's and the output embedding's
    has_output_embedding: bool
    is_classifier: bool  # by the name of its architecture
    num_labels: int = 1

    @property
    def beside(self) -> str:
        """The tensors besides the trunk, as text; empty if there are none."""
        return in_words(self.head_shapes)

    def declaration(self) -> dict[str, Any] | None:
        """A reward.json with which the service may accept the checkpoint; None if nothing looks like a score."""
        if self.is_classifier and self.num_labels > 1:
            return {"map": {"output": 0}}
        if self.is_classifier and any(name.startswith("classifier") for name in self.head_shapes):
            return None  # an encoder's class computes more between the states and this layer
        if self.head_shapes:
            return suggested_declaration(self.head_shapes, self.hidden_size)
        return JUDGE if self.has_output_embedding else None


def read_contents(source: str, saved: Saved) -> Contents | None:
    """None if transformers does not have this model type, or the trunk is not in the files."""
    trunk = empty_trunk(saved)
    try:
        layout = layout_of(source, saved.weights, trunk_names(trunk)) if trunk is not None else None
    except ModelRefusedError:  # two trunks
        layout = None
    if trunk is None or layout is None:
        return None
    architecture = architecture_of(saved.raw_config.get("architectures"))
    return Contents(
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
