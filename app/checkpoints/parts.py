"""Determines a checkpoint's kind before its weights are read: a plain classifier, or a trunk with a detected or declared head."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

from app.checkpoints.checks import check_not_encoder_decoder
from app.checkpoints.declaration import Declaration, Declared
from app.checkpoints.heads import declared_parts
from app.checkpoints.layout import Layout, TrunkNames, layout_of
from app.checkpoints.recipe import Recipe, RecipeMaker
from app.checkpoints.saved import Saved
from app.checkpoints.vocabulary import Vocabulary
from app.errors import ModelRefusedError


@dataclass(frozen=True, slots=True)
class TrunkParts:
    """A trunk on `meta`, its tensors in the files, and the recipe for its scores."""

    empty: PreTrainedModel
    layout: Layout
    recipe: Recipe


def parts_of(
    source: str, saved: Saved, declarations: list[tuple[Declaration, str]], beside: Path | None
) -> TrunkParts | Declared:
    """The parts of a trunk with a detected or declared head; for a plain classifier, the declarations about it.

    Raises ModelRefusedError.
    """
    empty = empty_trunk(saved)
    trunk = trunk_names(empty) if empty is not None else None
    layout = layout_of(source, saved.weights, trunk) if trunk is not None else None
    numbers = {name: float(layout.head[name][...].reshape(())) for name in layout.numbers} if layout is not None else {}
    declared, explained = declared_parts(source, saved.raw_config, declarations, trunk, layout, numbers)
    if declared.head is None:
        return declared
    if empty is None or trunk is None or layout is None:
        raise ModelRefusedError(
            f"{source}: {declared.origin['head']} declares a head, but the files have no trunk that transformers knows "
            f"(model_type {saved.config.model_type}); use a model type that it has"
        )
    check_not_encoder_decoder(source, saved.config.is_encoder_decoder)
    embedding: Any = empty.get_input_embeddings()
    maker = RecipeMaker(
        source,
        declared,
        layout,
        vocabulary_of(source, saved, embedding.num_embeddings),
        config=saved.config,
        hidden_size=trunk.hidden_size,
        beside=beside.parent if beside is not None else None,
    )
    maker.explained |= explained
    return TrunkParts(empty, layout, maker.make())


def empty_trunk(saved: Saved) -> PreTrainedModel | None:
    """The trunk on `meta` (for a model of texts and images, the text model); None if transformers does not have this type."""
    try:
        with torch.device("meta"):
            trunk: PreTrainedModel = AutoModel.from_config(  # type: ignore[no-untyped-call]
                saved.config.get_text_config(), trust_remote_code=False
            )
    except ValueError:  # its "unrecognized configuration class"
        return None
    return trunk


def trunk_names(trunk: PreTrainedModel) -> TrunkNames:
    """The names of the parts of `trunk`, which may be on `meta`."""
    children = [name for name, _ in trunk.named_children()]
    own = [name for name, _ in trunk.named_parameters(recurse=False)]
    embedding = trunk.get_input_embeddings()
    name = next(f"{name}.weight" for name, module in trunk.named_modules() if module is embedding)
    return TrunkNames(name, frozenset([*children, *own]), f"{trunk.base_model_prefix}.", hidden_size(trunk))


def hidden_size(trunk: PreTrainedModel) -> int:
    config: Any = trunk.config.get_text_config()
    size = getattr(config, "hidden_size", None) or getattr(config, "n_embd", None)
    if size is None:
        embedding = trunk.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        size = embedding.embedding_dim
    return int(size)


def vocabulary_of(source: str, saved: Saved, size: int) -> Vocabulary:
    text = saved.config.get_text_config()
    config = {**text.to_dict(), **saved.raw_config, "pad_token_id": text.pad_token_id}
    return Vocabulary(source, config, saved.tokenizer, size)
