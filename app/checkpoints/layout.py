"""Sorts a checkpoint's tensors by their names and shapes: those of the trunk, of the head, and the rest.

Trainers save the same trunk under different prefixes (`model.`, `transformer.`, `module.model.`). The input embedding shows
which: what precedes its name in the files is the trunk's prefix.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.checkpoints.files import shape_of
from app.errors import ModelRefusedError

WRAPPERS = re.compile(r"^((module|_orig_mod|base_model\.model|base_model|pretrained_model)\.)+")
"""Prefixes that data-parallel training, compilation, peft and TRL add to names."""
LM_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.(weight|bias)$|^output\.weight$")
"""The next-token head, which a reward model's files may still contain."""
IGNORED = re.compile(
    r"(^|\.)rotary_emb\.inv_freq$"
    r"|^(model\.)?(vision_tower|vision_model|visual|multi_modal_projector|audio_tower|embed_vision|embed_audio)\."
)
"""Computed buffers, and modules for images and sounds only."""


@dataclass(frozen=True, slots=True)
class TrunkNames:
    """The names that a trunk's class gives to its parts."""

    embedding: str
    """The input embedding's weight, such as `embed_tokens.weight`."""
    children: frozenset[str]
    """The first component of each tensor's name."""
    prefix: str
    """The prefix of the trunk's names in transformers' classes with a head, such as `model.`."""
    hidden_size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A checkpoint's tensors in three groups, by their names without the prefixes in the files."""

    prefix: str
    """The prefix of the trunk's names in the files."""
    embedding: str
    """The name of the input embedding's weight in the trunk."""
    trunk: Mapping[str, Any]
    lm_head: Mapping[str, Any]
    head: Mapping[str, Any]
    """All other tensors."""

    @property
    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape_of(stored) for name, stored in self.head.items()}

    @property
    def numbers(self) -> list[str]:
        """The tensors of one element in `head` that belong to no layer, such as a normalizer's mean."""
        shapes = self.head_shapes.items()
        return [name for name, shape in shapes if shape in {(), (1,)} and not name.endswith((".weight", ".bias"))]


def layout_of(source: str, weights: Mapping[str, Any], trunk: TrunkNames) -> Layout | None:
    """Sorts the tensors into groups; None if the embedding of `trunk` is not among them.

    Raises ModelRefusedError if the files contain two trunks.
    """
    prefix = find_prefix(source, list(weights), trunk)
    if prefix is None:
        return None
    num_tokens = shape_of(weights[f"{prefix}{trunk.embedding}"])[0]

    def has_row_per_token(stored: Any) -> bool:
        """Roughly, because a vocabulary may be rounded up. A scalar head under the same name has one row."""
        return shape_of(stored)[0] * 2 >= num_tokens

    parts: dict[str, dict[str, Any]] = {"trunk": {}, "lm_head": {}, "head": {}}
    for name, stored in weights.items():
        inside = name.removeprefix(prefix)
        if name.startswith(prefix) and inside.partition(".")[0] in trunk.children:
            parts["trunk"][inside] = stored
            continue
        outside = WRAPPERS.sub("", inside)
        if not IGNORED.search(outside):
            parts["lm_head" if LM_HEAD.search(outside) and has_row_per_token(stored) else "head"][outside] = stored
    return Layout(prefix, trunk.embedding, **parts)


def find_prefix(source: str, names: list[str], trunk: TrunkNames) -> str | None:
    anchor = trunk.embedding
    prefixes = [name.removesuffix(anchor) for name in names if name == anchor or name.endswith(f".{anchor}")]
    if len(prefixes) > 1:
        raise ModelRefusedError(
            f"{source} holds the trunk more than once, under {' and '.join(map(repr, sorted(prefixes)))}; "
            "save it once: `reward-service convert` drops copies"
        )
    return prefixes[0] if prefixes else None


def layers_named(shapes: Mapping[str, tuple[int, ...]], name: str) -> list[str]:
    """The layers of the head `name`, in order: `name` if it has a weight, else `name.0`, `name.2` and so on."""
    if f"{name}.weight" in shapes:
        return [name]
    numbers = re.compile(rf"^{re.escape(name)}\.(\d+)\.weight$")
    return [f"{name}.{i}" for i in sorted(int(found[1]) for found in map(numbers.match, shapes) if found)]


def is_chain(shapes: Mapping[str, tuple[int, ...]], layers: list[str], size: int) -> bool:
    """Whether each layer's input size matches the output size before it, starting from states of `size`."""
    for layer in layers:
        weight, bias = shapes.get(f"{layer}.weight", ()), shapes.get(f"{layer}.bias")
        if len(weight) != 2 or weight[1] != size or bias not in {None, (weight[0],)}:  # noqa: PLR2004 - a matrix
            return False
        size = weight[0]
    return bool(layers)


def in_words(shapes: Mapping[str, tuple[int, ...]], limit: int = 4) -> str:
    """A list for messages, such as `v_head.weight [1, 4096] and 3 more`."""
    named = [f"{name} {list(shape)}" for name, shape in sorted(shapes.items())]
    more = f" and {len(named) - limit} more" if len(named) > limit else ""
    return ", ".join(named[:limit]) + more


def tensors_of(layers: list[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for layer in layers:
        yield from (f"{layer}.{kind}" for kind in ("weight", "bias") if f"{layer}.{kind}" in shapes)


def suggested_declaration(shapes: Mapping[str, tuple[int, ...]], size: int) -> dict[str, Any] | None:
    """A reward.json for the likeliest head among the tensors; None if none are layers over states of `size`."""
    heads = heads_in(shapes, size)
    if not heads:
        return None
    layers = layers_named(shapes, heads[0])
    declared = {"head": heads[0] if len(layers) == 1 else with_activation(heads[0]), "position": "last"}
    num_outputs = shapes[f"{layers[-1]}.weight"][0]
    return declared if num_outputs == 1 else declared | {"map": {"output": 0}}


def with_activation(tensors: str | list[str]) -> dict[str, Any]:
    """A declared head of several layers, with the most common activation."""
    return {"tensors": tensors, "activation": "relu"}


def heads_in(shapes: Mapping[str, tuple[int, ...]], size: int) -> list[str]:
    """The chains of layers over states of `size`, likeliest first: those that leave no other tensor, then fewest outputs."""
    names = dict.fromkeys(base_of(name.removesuffix(".weight")) for name in shapes if name.endswith(".weight"))
    chains = {name: layers for name in names if is_chain(shapes, layers := layers_named(shapes, name), size)}

    def order(name: str) -> tuple[bool, int]:
        left = set(shapes) - set(tensors_of(chains[name], shapes))
        return bool(left), shapes[f"{chains[name][-1]}.weight"][0]

    return sorted(chains, key=order)


def base_of(layer: str) -> str:
    """The head's name: `score` for `score.0`."""
    start, _, last = layer.rpartition(".")
    return start if last.isdigit() else layer
