"""The table app/checkpoints/trunks.json, from the installed transformers. `make trunks` writes it; a test compares the two."""

import json
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    __version__,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from app.checkpoints.building import head_of
from app.checkpoints.layout import LM_HEAD
from app.checkpoints.parts import hidden_size, trunk_names
from app.checkpoints.transformers_checks import quiet_transformers
from app.checkpoints.trunks import EVERY_TYPE, read_table
from tests.engine.test_families import tiny_config

FILE = Path(__file__).resolve().parent.parent / "app" / "checkpoints" / "trunks.json"
NUM_LABELS = 3
LAYERS_ALIKE = {
    *(
        "apertus",
        "arcee",
        "bitnet",
        "bloom",
        "codegen",
        "cohere",
        "cohere2",
        "diffllama",
        "ernie4_5",
        "exaone4",
        "falcon",
    ),
    *("gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite", "helium"),
    *(
        "hunyuan_v1_dense",
        "llama",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
    ),
    *("persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2"),
}
"""The model types whose layers all have the same tensors with any config: their classes use the layer's index for masks only."""

Row = dict[str, Any]


def model_types() -> list[str]:
    """Those with a language model or a classifier, and the text models of models of texts and images."""
    texts = {name for name in MODEL_MAPPING_NAMES if name.endswith("_text")}
    heads = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES}
    return sorted((texts | heads) & set(MODEL_MAPPING_NAMES))


def small_config(model_type: str) -> PreTrainedConfig | None:
    """A config of few layers; None if no trunk can be built from it, or only a part of the model is a trunk of texts."""
    config_class: Any = CONFIG_MAPPING[model_type]
    layers = config_class.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for make in (lambda: config_class(**tiny_config(model_type)), lambda: config_class(**{layers: 2}), config_class):
        with suppress(Exception):  # each class has requirements of its own
            config: PreTrainedConfig = make()
            trunk_names(build(AutoModel, config))
            return config if config.get_text_config() is config else None
    return None


def build(auto_class: Any, config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the sizes
        net: PreTrainedModel = auto_class.from_config(config)
    return net


def models(auto_class: Any, config: PreTrainedConfig, *, varied: bool) -> Iterator[PreTrainedModel]:
    """The model of `config`; if `varied`, also those with one switch turned or one size doubled, as far as its class allows it."""
    yield build(auto_class, config)
    values = config.to_dict() if varied else {}
    for key, value in values.items():
        if isinstance(value, int) and not key.endswith("_id"):
            other = not value if isinstance(value, bool) else value * 2 or 1
            with suppress(Exception):
                yield build(auto_class, type(config)(**{**values, key: other}))


def row_of(model_type: str, *, varied: bool = True) -> Row | None:
    """What `KnownTrunk` says of a model type; None if its trunk cannot be built, or its names depend on the config.

    `varied`: for any config, not only the one that is built.
    """
    config = small_config(model_type)
    if config is None:
        return None
    size, trunks = config.attribute_map.get("hidden_size", "hidden_size"), []
    for net in models(AutoModel, config, varied=varied):
        with suppress(AttributeError, StopIteration):  # it may have no embedding of tokens
            trunks.append((trunk_names(net), getattr(net.config, size, None)))
    first, _ = trunks[0]
    if any((own.embedding, own.prefix, own.hidden_size) != (first.embedding, first.prefix, n) for own, n in trunks):
        return None
    children = set[str]().union(*(names.children for names, _ in trunks))
    row: Row = {"embedding": first.embedding, "children": sorted(children), "prefix": first.prefix, "size": size}
    if model_type in LAYERS_ALIKE:
        row["layers_alike"] = True
    return row | language_model(model_type, config, first.prefix) | classifier(model_type, config, varied=varied)


def language_model(model_type: str, config: PreTrainedConfig, prefix: str) -> Row:
    """Its class, if it has no tensors besides the trunk and the next-token head."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    with suppress(Exception):
        tensors = build(AutoModelForCausalLM, config).state_dict()
        if all(each.startswith(prefix) or LM_HEAD.search(each) for each in tensors):
            return {"language_model": name}
    return {}


def classifier(model_type: str, config: PreTrainedConfig, *, varied: bool) -> Row:
    """Its class, the tensors of its head, and the names that transformers reads as other tensors."""
    name = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(model_type)
    if name is None:
        return {}
    row: Row = {"classifier": name}
    config.num_labels = NUM_LABELS
    with suppress(Exception):
        nets = list(models(AutoModelForSequenceClassification, config, varied=varied))
        heads = [
            {each for each in net.state_dict() if not each.startswith(f"{net.base_model_prefix}.")} for net in nets
        ]
        always, ever = set.intersection(*heads), set[str]().union(*heads)
        output, layer = head_of(nets[0])
        row |= {"output": output, "head": sorted(always)}
        is_alone = ever <= {f"{output}.weight", f"{output}.bias"}
        if is_alone and layer.in_features == hidden_size(nets[0]):
            row["linear"] = True
        if ever > always:
            row["optional"] = sorted(ever - always)
        conversions = get_model_conversion_mapping(nets[0], add_legacy=False)
        renamed = {each.compiled_sources.pattern for each in conversions}
        renamed.update(nets[0]._keys_to_ignore_on_load_unexpected or ())
        if renamed:
            row["renamed"] = sorted(renamed)
    return row


def every_type() -> Row:
    """The version of transformers, and the names that it reads as other tensors in any model."""
    net = build(AutoModel, AutoConfig.for_model("llama", num_hidden_layers=1))
    legacy = get_model_conversion_mapping(net)[len(get_model_conversion_mapping(net, add_legacy=False)) :]
    patterns = [each.compiled_sources.pattern for each in legacy]
    return {"transformers": __version__, "renamed": [*patterns, r"(^|\.)position_ids$"]}


def main() -> None:
    """Writes the table. Keeps the children that earlier releases had, because users may have them."""
    before = read_table()
    with quiet_transformers():
        rows = {EVERY_TYPE: every_type()} | {name: row for name in model_types() if (row := row_of(name)) is not None}
    for name, row in rows.items():
        if name in before and name != EVERY_TYPE:
            row["children"] = sorted({*row["children"], *before[name]["children"]})
    lines = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
