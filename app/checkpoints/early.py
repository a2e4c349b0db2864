"""What is refused before torch and transformers are imported, which takes seconds. `load_checkpoint` checks it again.

The rules are those of loading. A trunk's layers are compared with each other; what all of them lack needs the model's class, and is
left to loading. So is every checkpoint whose trunk is not in TRUNKS, and what the hub has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.checkpoints.adapter_files import CONFIG, find_base, holds_adapter
from app.checkpoints.architecture import architecture_of
from app.checkpoints.checks import (
    OTHER_RULES,
    check_architecture,
    check_explained,
    check_labels,
    check_mismatched,
    check_other_rules,
    check_quantized,
    check_types,
    check_untrained,
    refusing,
)
from app.checkpoints.declaration import DECLARATION_NAME, Declaration, Declared, read_declarations
from app.checkpoints.files import Shape, read_json, shapes_of, weight_files
from app.checkpoints.heads import check_all_explained, check_chosen, declared_parts, head_layers
from app.checkpoints.layers import LayerFaults, compare_layers
from app.checkpoints.layout import Layout, TrunkNames, layout_of, tensors_of
from app.settings import HUB_PREFIX

Origins = list[tuple[Declaration, str]]

LLAMA = TrunkNames("embed_tokens.weight", frozenset({"embed_tokens", "layers", "norm", "rotary_emb"}), "model.", 0)
LIKE_LLAMA = (
    *(
        "arcee",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "helium",
        "llama",
        "ministral3",
        "mistral",
        "mixtral",
    ),
    *("olmo", "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2"),
)
TRUNKS: dict[str, TrunkNames] = {
    **dict.fromkeys(LIKE_LLAMA, LLAMA),
    "gpt_neox": TrunkNames(
        "embed_in.weight",
        frozenset({"embed_in", "emb_dropout", "layers", "final_layer_norm", "rotary_emb"}),
        "gpt_neox.",
        0,
    ),
    "gpt2": TrunkNames("wte.weight", frozenset({"wte", "wpe", "drop", "h", "ln_f"}), "transformer.", 0),
}
"""By model type, what transformers calls the parts of a trunk, without its size. All layers of each have the same tensors, and their
classifiers' head is `score.weight`."""
HEAD = "score.weight"


def check_declarations(source: str, declared: str | None, text: str | None) -> Origins:
    """Raises ModelRefusedError where `reward.json` in the directory, or a setting, cannot be read."""
    beside = Path(source) / DECLARATION_NAME
    is_there = not source.startswith(HUB_PREFIX) and beside.is_file()
    return read_declarations(source, beside if is_there else None, declared, text)


def check_files(source: str, declarations: Origins, *, trust_remote_code: bool) -> None:
    """Raises ModelRefusedError where a directory's names and shapes alone say that it cannot be served."""
    if source.startswith(HUB_PREFIX):
        return
    with refusing(source):
        if holds_adapter(source, local_files_only=True):
            named = read_json(Path(source, CONFIG)).get("base_model_name_or_path") or ""
            find_base(source, Path(source), str(named), may_be_remote=False)
            return
        config = read_json(Path(source, "config.json"))
        if any(Path(source).glob("*.gguf")) or (trust_remote_code and "auto_map" in config):
            return
        check_quantized(source, config.get("quantization_config"))
        files = weight_files(source, local_files_only=True)
        weights = shapes_of(files)
        check_types(source, weights)
        check_untrained(source, files)
        trunk = trunk_of(config)
        layout = layout_of(source, weights, trunk) if trunk is not None else None
        if trunk is not None and layout is not None:
            check_parts(source, config, declarations, trunk, layout)


def trunk_of(config: Mapping[str, Any]) -> TrunkNames | None:
    """None for what is not in TRUNKS."""
    names = TRUNKS.get(str(config.get("model_type")))
    size = config.get("hidden_size") or config.get("n_embd")
    if names is None or not isinstance(size, int):
        return None
    return TrunkNames(names.embedding, names.children, names.prefix, size)


def check_parts(
    source: str, config: Mapping[str, Any], declarations: Origins, trunk: TrunkNames, layout: Layout
) -> None:
    """As loading finds a trunk's head, and a plain classifier's rules."""
    declared, explained = declared_parts(source, config, declarations, trunk, layout, {})
    if declared.head is None:
        check_classifier(source, config, declared, trunk, layout)
        return
    shapes = layout.head_shapes
    if declared.head.tensors is not None:
        layers = head_layers(source, declared, shapes, trunk.hidden_size)
        explained |= set(tensors_of(layers, shapes))
        check_chosen(source, declared, shapes[f"{layers[-1]}.weight"][0])
    check_all_explained(source, shapes, explained, trunk.hidden_size)
    faults_in_layers(config, layout).check(source, layout.trunk)


def faults_in_layers(config: Mapping[str, Any], layout: Layout) -> LayerFaults:
    num_layers = config.get("num_hidden_layers") or config.get("n_layer")
    return compare_layers(layout.trunk, num_layers) if isinstance(num_layers, int) else LayerFaults()


def check_classifier(
    source: str, config: Mapping[str, Any], declared: Declared, trunk: TrunkNames, layout: Layout
) -> None:
    architecture = architecture_of(config.get("architectures"))
    check_architecture(source, architecture)
    labels = config.get("id2label")
    num_labels = len(labels) if labels else config.get("num_labels")
    if num_labels is not None and not declared.map.chooses:
        check_labels(source, num_labels)
    check_other_rules(source, architecture, {name: config.get(name) for name in OTHER_RULES})
    shapes = layout.head_shapes
    if layout.prefix != trunk.prefix:
        return
    faults = faults_in_layers(config, layout)
    faults.check(source, layout.trunk, trunk.prefix, {HEAD} - shapes.keys())
    wanted = (num_labels or shapes[HEAD][0], trunk.hidden_size)
    check_mismatched(source, [(HEAD, shapes[HEAD], wanted)] if shapes[HEAD] != wanted else [])
    check_explained(source, shapes.keys() - {HEAD}, {name: Shape(shape) for name, shape in shapes.items()})
