"""Tells a checkpoint's kind before its weights are read: a plain classifier, or a trunk with a head that is found or declared."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from app.checkpoints.architecture import architecture_of, is_classifier
from app.checkpoints.declaration import Declaration, Declared
from app.checkpoints.families import Found, declares, find_family
from app.checkpoints.layout import Layout, hidden_size, in_words, layout_of
from app.checkpoints.recipe import Recipe, RecipeMaker, remedy
from app.checkpoints.saved import Saved
from app.checkpoints.vocabulary import Vocabulary
from app.errors import ModelRefusedError, UndeclaredHeadError

OTHER_HEADS = re.compile(r"(v_head|value_head|regression_head|score_head|reward_head|score\.\d+)\.")
"""Heads that no classifier of transformers has: its name in config.json is then not the truth."""


@dataclass(frozen=True, slots=True)
class TrunkParts:
    """A trunk, yet on `meta`, where its tensors are, and the recipe for its scores."""

    empty: PreTrainedModel
    layout: Layout
    recipe: Recipe


def parts_of(
    source: str, saved: Saved, declarations: list[tuple[Declaration, str]], beside: Path | None
) -> TrunkParts | Declared:
    """The parts of a trunk with a head of its own; for a plain classifier what is declared about it.

    Raises ModelRefusedError.
    """
    declared = Declared()
    has_declared_head = any(declaration.head is not None for declaration, _ in declarations)
    empty = empty_trunk(saved)
    layout = layout_of(source, saved.weights, empty) if empty is not None else None
    explained: set[str] = set()
    if empty is not None and layout is not None and not has_declared_head:
        explained = add_family(source, saved, declared, empty, layout)
    for declaration, origin in declarations:
        declared.add(declaration, origin)
    if declared.head is None:
        if empty is not None and layout is not None:
            check_head_is_known(source, saved, layout, hidden_size(empty))
        return declared
    if empty is None or layout is None:
        raise ModelRefusedError(
            f"{source}: {declared.origin['head']} declares a head, and the files have no trunk that transformers knows "
            f"(model_type {saved.config.model_type}); it cannot be served"
        )
    if saved.config.is_encoder_decoder:
        raise ModelRefusedError(f"{source} is an encoder-decoder with a head of its own, which is not served")
    embedding: Any = empty.get_input_embeddings()
    maker = RecipeMaker(
        source,
        declared,
        layout,
        vocabulary_of(source, saved, embedding.num_embeddings),
        config=saved.config,
        hidden_size=hidden_size(empty),
        beside=beside.parent if beside is not None else None,
    )
    maker.explained |= explained
    return TrunkParts(empty, layout, maker.make())


def check_head_is_known(source: str, saved: Saved, layout: Layout, size: int) -> None:
    """Raises where this is no classifier of transformers, and there are tensors beside the trunk."""
    architecture = architecture_of(saved.raw_config.get("architectures"))
    is_renamed = "score.weight" not in layout.head_shapes and any(map(OTHER_HEADS.match, layout.head_shapes))
    if layout.head_shapes and (not is_classifier(architecture) or is_renamed):
        raise UndeclaredHeadError(
            f"{source} is {architecture} and has {in_words(layout.head_shapes)}: a head of no family that is known here; "
            f"{remedy(layout.head_shapes, size)}"
        )


def empty_trunk(saved: Saved) -> PreTrainedModel | None:
    """The trunk on `meta`, of a model of texts and images the text model; None where transformers has no plain model of this type."""
    try:
        with torch.device("meta"):
            trunk: PreTrainedModel = AutoModel.from_config(  # type: ignore[no-untyped-call]
                saved.config.get_text_config(), trust_remote_code=False
            )
    except ValueError:  # its "unrecognized configuration class"
        return None
    return trunk


def add_family(source: str, saved: Saved, declared: Declared, empty: PreTrainedModel, layout: Layout) -> set[str]:
    """Adds what the checkpoint's family declares; returns the tensors that its rule explains beside the head."""
    found = Found(
        source=source,
        config=saved.raw_config,
        shapes=layout.head_shapes,
        prefix=layout.prefix,
        hidden_size=hidden_size(empty),
        own_prefix=f"{empty.base_model_prefix}.",
        num_values=numbers_in(layout),
    )
    match = find_family(source, found)
    if match is None:
        return set()
    family, head, evidence = match
    rules = declares(family, found) | {"head": {"tensors": head, "activation": family.activation}}
    declared.add(Declaration.model_validate(rules), f"{family.name}: {evidence}", is_declared=False)
    declared.replaces_template = family.replaces_template
    return set(family.explains)


def numbers_in(layout: Layout) -> dict[str, float]:
    """The tensors beside the trunk that hold one number and are no layer's, such as a normalizer's mean."""
    return {
        name: float(layout.head[name][...].reshape(()))
        for name, shape in layout.head_shapes.items()
        if shape in {(), (1,)} and not name.endswith((".weight", ".bias"))
    }


def vocabulary_of(source: str, saved: Saved, size: int) -> Vocabulary:
    text = saved.config.get_text_config()
    config = {**text.to_dict(), **saved.raw_config, "pad_token_id": text.pad_token_id}
    return Vocabulary(source, config, saved.tokenizer, size)
