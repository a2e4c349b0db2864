"""Refuses directories before torch and transformers are imported, which takes seconds. `load_checkpoint` repeats the checks.

The rules are those of loading, applied to config.json, the declarations, and the names and shapes of tensors. What needs the
model's class and is not in `trunks.json` is left to loading, and so are models of the hub.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.checkpoints.adapter_files import CONFIG, WEIGHTS, find_base, head_rows, holds_adapter
from app.checkpoints.architecture import architecture_of
from app.checkpoints.checks import (
    OTHER_RULES,
    check_architecture,
    check_class,
    check_depth,
    check_explained,
    check_labels,
    check_mismatched,
    check_not_encoder_decoder,
    check_other_rules,
    check_quantized,
    check_types,
    check_untrained,
    refusing,
)
from app.checkpoints.declaration import DECLARATION_NAME, Declaration, read_declarations
from app.checkpoints.files import Shape, find_gguf, head_files, read_json, shapes_of, weight_files
from app.checkpoints.gguf_header import other_tensors
from app.checkpoints.heads import check_all_explained, check_chosen, declared_parts, head_layers
from app.checkpoints.layers import LayerFaults, compare_layers
from app.checkpoints.layout import Layout, layout_of, tensors_of
from app.checkpoints.native import NATIVE
from app.checkpoints.trunks import KnownTrunk, known_classifiers, known_trunk
from app.settings import HUB_PREFIX

Origins = list[tuple[Declaration, str]]


def check_declarations(source: str, declared: str | None, text: str | None) -> Origins:
    """Raises ModelRefusedError where `reward.json` in the directory, or a setting, cannot be read."""
    beside = Path(source) / DECLARATION_NAME
    is_there = not source.startswith(HUB_PREFIX) and beside.is_file()
    return read_declarations(source, beside if is_there else None, declared, text)


def check_files(source: str, declarations: Origins, *, trust_remote_code: bool) -> None:
    """Raises ModelRefusedError where a directory's config, and the names and shapes of its tensors, show that it cannot be served."""
    if source.startswith(HUB_PREFIX):
        return
    with refusing(source):
        if holds_adapter(source, local_files_only=True):
            check_adapter(source, declarations, trust_remote_code)
            return
        model = read_model(source, trust_remote_code)
        if model is None:
            return
        check_untrained(source, model.files)
        trunk = model.trunk
        if trunk is not None and (layout := layout_of(source, model.weights, trunk.names)) is not None:
            check_parts(source, model.config, declarations, trunk, layout)


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of a complete checkpoint without reading its weights."""

    config: Mapping[str, Any]
    """The content of config.json."""
    trunk: KnownTrunk | None
    files: list[Path]
    weights: Mapping[str, Any]
    """Names and shapes. Of a GGUF file, those of the input embedding and of the tensors that no language model has."""


def read_model(source: str, trust_remote_code: bool) -> Model | None:
    """None for a checkpoint that runs code of its own. Raises ModelRefusedError."""
    config = read_json(Path(source, "config.json"))
    if trust_remote_code and "auto_map" in config:
        return None
    native = NATIVE.get(config.get("model_type", ""))
    trunk = known_trunk(config if native is None else config | {"model_type": native.model_type})
    check_quantized(source, config.get("quantization_config"))
    if (gguf := find_gguf(source)) is not None:
        # transformers reads the files of other types than Llama, and only the tensors of a language model
        others = other_tensors(gguf) if trunk is not None and trunk.model_type == "llama" else {}
        return Model(config, trunk, [gguf], {} if others is None else with_embedding(config, trunk, others))
    files = weight_files(source, local_files_only=True)
    weights: Mapping[str, Any] = shapes_of(files)
    check_types(source, weights)
    check_depth(source, config, len(weights))
    return Model(config, trunk, files, weights if native is None else native.weights(config, dict(weights)))


def with_embedding(
    config: Mapping[str, Any], trunk: KnownTrunk | None, tensors: Mapping[str, Shape]
) -> dict[str, Shape]:
    """`tensors`, and the input embedding as transformers' language model has it; empty if the config does not state its size."""
    num_tokens = config.get("vocab_size")
    if trunk is None or not isinstance(num_tokens, int):
        return {}
    return {f"{trunk.names.prefix}{trunk.names.embedding}": Shape((num_tokens, trunk.names.hidden_size)), **tensors}


def check_parts(
    source: str, config: Mapping[str, Any], declarations: Origins, trunk: KnownTrunk, layout: Layout
) -> None:
    """Finds the head as loading does, and checks its tensors or, if none is declared, the plain classifier's."""
    numbers = dict.fromkeys(layout.numbers, 1.0)  # only the tensors' names matter here
    declared, explained = declared_parts(source, config, declarations, trunk.names, layout, numbers)
    if declared.head is None:
        check_classifier(source, config, trunk, layout, chooses=declared.map.chooses)
        return
    check_not_encoder_decoder(source, bool(config.get("is_encoder_decoder")))
    shapes, size = layout.head_shapes, trunk.names.hidden_size
    if declared.head.tensors is not None:
        layers = head_layers(source, declared, shapes, size)
        explained |= set(tensors_of(layers, shapes))
        check_chosen(source, declared, shapes[f"{layers[-1]}.weight"][0])
    check_all_explained(source, shapes, explained, size)
    faults_in_layers(trunk, layout).check(source, layout.trunk)


def faults_in_layers(trunk: KnownTrunk, layout: Layout) -> LayerFaults:
    return compare_layers(layout.trunk, trunk.num_layers) if trunk.num_layers is not None else LayerFaults()


def check_classifier(
    source: str, config: Mapping[str, Any], trunk: KnownTrunk, layout: Layout, *, chooses: bool
) -> None:
    """Checks what loading expects of a plain classifier. `chooses`: whether a declared map chooses among its outputs."""
    num_labels = check_kind(source, config, trunk, chooses=chooses)
    shapes, prefix = layout.head_shapes, trunk.names.prefix
    if not trunk.head or layout.prefix != prefix or trunk.may_rename(shapes):
        return
    faults_in_layers(trunk, layout).check(source, layout.trunk, prefix, trunk.head - shapes.keys())
    if trunk.has_linear_head:
        name = f"{trunk.output}.weight"
        wanted = (num_labels or shapes[name][0], trunk.names.hidden_size)
        check_mismatched(source, [(name, shapes[name], wanted)] if shapes[name] != wanted else [])
    unexpected = shapes.keys() - trunk.head - trunk.optional
    check_explained(source, unexpected, {name: Shape(shapes[name]) for name in unexpected})


def check_kind(source: str, config: Mapping[str, Any], trunk: KnownTrunk, *, chooses: bool) -> int | None:
    """Checks that config.json describes a plain classifier. Returns its number of labels, if that is given."""
    architecture = architecture_of(config.get("architectures"))
    check_architecture(source, architecture)
    if architecture not in known_classifiers():
        check_class(source, architecture, trunk.classifier, trunk.model_type)
    labels = config.get("id2label")
    num_labels = len(labels) if labels else config.get("num_labels")
    if num_labels is not None and not chooses:
        check_labels(source, num_labels)
    check_other_rules(source, architecture, {name: config.get(name) for name in OTHER_RULES})
    return num_labels


def check_adapter(source: str, declarations: Origins, trust_remote_code: bool) -> None:
    """Checks an adapter's base, and the head that one of the two brings."""
    directory = Path(source)
    if not (directory / WEIGHTS).is_file():
        raise FileNotFoundError(f"no file named {WEIGHTS}")
    named = read_json(directory / CONFIG).get("base_model_name_or_path") or ""
    base = find_base(source, directory, str(named), may_be_remote=False)
    model = None if base.startswith(HUB_PREFIX) else read_model(base, trust_remote_code)
    trunk = model.trunk if model is not None else None
    if model is None or trunk is None:
        return
    heads = head_files(source, local_files_only=True)
    if heads or any(declaration.head is not None for declaration, _ in declarations):
        weights = with_embedding(model.config, trunk, shapes_of(heads))
        layout = layout_of(source, weights, trunk.names)
        if trunk.language_model is not None and layout is not None:
            config = {**model.config, "architectures": [trunk.language_model]}
            check_parts(source, config, declarations, trunk, layout)
        return
    if trunk.head:
        chooses = any(each.map is not None and each.map.chooses for each, _ in declarations)
        num_rows = head_rows(shapes_of([directory / WEIGHTS]), trunk.output)
        if num_rows is None:
            check_kind(base, model.config, trunk, chooses=chooses)
            check_untrained(base, model.files)
        elif not chooses:
            check_labels(source, num_rows)
