"""Determines which tensors of a checkpoint are its head, detected or declared, from names and shapes. Imports no torch."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.checkpoints.architecture import architecture_of, is_classifier
from app.checkpoints.declaration import Declaration, Declared
from app.checkpoints.families import Found, declares, find_family
from app.checkpoints.layout import (
    Layout,
    TrunkNames,
    in_words,
    is_chain,
    layers_named,
    suggested_declaration,
    with_activation,
)
from app.errors import ModelRefusedError, UndeclaredHeadError

OTHER_HEADS = re.compile(r"(v_head|value_head|regression_head|score_head|reward_head|score\.\d+)\.")
"""Heads that no classifier of transformers has, so that a classifier's name in config.json is wrong."""


def declared_parts(
    source: str,
    raw_config: Mapping[str, Any],
    declarations: Sequence[tuple[Declaration, str]],
    trunk: TrunkNames | None,
    layout: Layout | None,
    num_values: Mapping[str, float],
) -> tuple[Declared, set[str]]:
    """What is declared, over what the family declares where nobody declares a head, and the tensors that the family explains.

    Raises ModelRefusedError where there is a head that neither declares.
    """
    declared = Declared()
    explained: set[str] = set()
    has_declared_head = any(declaration.head is not None for declaration, _ in declarations)
    if trunk is not None and layout is not None and not has_declared_head:
        explained = add_family(source, raw_config, declared, trunk, layout, num_values)
    for declaration, origin in declarations:
        declared.add(declaration, origin)
    if trunk is not None and layout is not None and declared.head is None:
        check_head_is_known(source, raw_config, layout, trunk.hidden_size)
    return declared, explained


def check_head_is_known(source: str, raw_config: Mapping[str, Any], layout: Layout, size: int) -> None:
    """Raises if there are tensors besides the trunk and this is no classifier of transformers."""
    architecture = architecture_of(raw_config.get("architectures"))
    is_renamed = "score.weight" not in layout.head_shapes and any(map(OTHER_HEADS.match, layout.head_shapes))
    if layout.head_shapes and (not is_classifier(architecture) or is_renamed):
        raise UndeclaredHeadError(
            f"{source} is {architecture} and has {in_words(layout.head_shapes)}, the head of no known family; "
            f"{remedy(layout.head_shapes, size)}"
        )


def add_family(
    source: str,
    raw_config: Mapping[str, Any],
    declared: Declared,
    trunk: TrunkNames,
    layout: Layout,
    num_values: Mapping[str, float],
) -> set[str]:
    """Adds the declarations of the checkpoint's family. Returns the tensors besides the head that its rule explains."""
    found = Found(
        source=source,
        config=raw_config,
        shapes=layout.head_shapes,
        prefix=layout.prefix,
        hidden_size=trunk.hidden_size,
        own_prefix=trunk.prefix,
        num_values=num_values,
    )
    match = find_family(source, found)
    if match is None:
        return set()
    family, head, evidence = match
    rules = declares(family, found) | {"head": {"tensors": head, "activation": family.activation}}
    declared.add(Declaration.model_validate(rules), f"{family.name}: {evidence}", is_declared=False)
    declared.replaces_template = family.replaces_template
    return set(family.explains)


def head_layers(source: str, declared: Declared, shapes: Mapping[str, tuple[int, ...]], size: int) -> list[str]:
    """The names of the declared head's layers. Raises ModelRefusedError if the files lack them or their shapes differ."""
    part = declared.head
    assert part is not None
    names = [part.tensors] if isinstance(part.tensors, str) else list(part.tensors or ())
    layers = layers_named(shapes, names[0]) if len(names) == 1 else names
    if not is_chain(shapes, layers, size):
        raise ModelRefusedError(
            f"{source}: {declared.origin['head']} declares the head {' and '.join(names)}, which should be layers "
            f"over states of {size}; the files have {in_words(shapes) or 'no tensor beside the language model'}"
        )
    if len(layers) > 1 and part.activation is None:
        raise ModelRefusedError(
            f"{source}: the head {' and '.join(names)} has {len(layers)} layers, and nothing says what is between them; "
            f'declare it: "head": {json.dumps(with_activation(names[0] if len(names) == 1 else names))}, or another activation'
        )
    return layers


def check_chosen(source: str, declared: Declared, num_outputs: int) -> None:
    """Raises if a head has several outputs and none is declared as the score."""
    if num_outputs > 1 and not declared.map.chooses:
        raise ModelRefusedError(
            f"{source}: the head has {num_outputs} outputs, and nothing says which is the score; declare "
            '"map": {"output": 0}, {"log_odds": [[1], [0]]}, {"softmax": 1} or {"weights": [...]} in reward.json'
        )


def check_all_explained(source: str, shapes: Mapping[str, tuple[int, ...]], explained: set[str], size: int) -> None:
    """Raises if some tensors are used by no part of the model."""
    left = {name: shape for name, shape in shapes.items() if name not in explained}
    if left:
        raise ModelRefusedError(f"{source} has {in_words(left)}, which no part of the model uses; {remedy(left, size)}")


def remedy(shapes: Mapping[str, tuple[int, ...]], size: int) -> str:
    """What to do about unexplained tensors: the declaration if they look like a head over states of `size`."""
    declared = suggested_declaration(shapes, size)
    if declared is None:
        return "save the model that was trained, or remove them"
    return f"if it is the head, write {json.dumps(declared)} to reward.json, else remove it"
