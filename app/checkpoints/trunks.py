"""What transformers calls the parts of each model type. Read from `trunks.json`, because importing transformers takes seconds.

`make trunks` writes that file. A model type that it lacks is checked when it is loaded.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from app.checkpoints.layout import TrunkNames

TABLE = files("app.checkpoints") / "trunks.json"
EVERY_TYPE = "*"
"""The row with the release that wrote the table, and the patterns for all model types."""


@dataclass(frozen=True, slots=True)
class KnownTrunk:
    """A model type's trunk, and transformers' classes that add a head to it."""

    model_type: str
    names: TrunkNames
    num_layers: int | None = None
    """None if not all of its layers have the same tensors, or their number is unknown."""
    language_model: str | None = None
    """The class with a next-token head; None if it has other tensors too."""
    classifier: str | None = None
    """The class for sequence classification."""
    output: str = ""
    """The classifier's last layer, such as `score`."""
    head: frozenset[str] = frozenset()
    """The classifier's tensors besides the trunk's, with any config."""
    optional: frozenset[str] = frozenset()
    """Those that it has with some configs only."""
    has_linear_head: bool = False
    """Whether the classifier's head is one linear layer over the trunk's states."""
    renamed: tuple[str, ...] = ()
    """Patterns of names in files that transformers ignores or reads as another tensor."""

    def may_rename(self, names: Iterable[str]) -> bool:
        """Whether transformers may ignore one of these tensors, or read it as another."""
        patterns = [re.compile(pattern) for pattern in (*read_table()[EVERY_TYPE]["renamed"], *self.renamed)]
        return any(
            name.partition(".")[0] in self.names.children
            or any(pattern.search(stored) for pattern in patterns for stored in (name, f"{self.names.prefix}{name}"))
            for name in names
        )


@cache
def read_table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def known_trunk(config: Mapping[str, Any]) -> KnownTrunk | None:
    """The trunk that a config.json describes, for a model of texts and images that of the text model without its classifier.

    None if the table lacks the model type, or the config the size of the states.
    """
    text = config.get("text_config")
    if config.get("model_type") not in read_table() and isinstance(text, dict):
        known = known_trunk(text)
        return known and replace(known, language_model=None, classifier=None, head=frozenset())
    row = read_table().get(str(config.get("model_type")))
    size = config.get(row["size"]) if row is not None else None
    if row is None or not isinstance(size, int):
        return None
    num_layers = config.get("num_hidden_layers", config.get("n_layer"))
    return KnownTrunk(
        str(config["model_type"]),
        TrunkNames(row["embedding"], frozenset(row["children"]), row["prefix"], size),
        num_layers if "layers_alike" in row and isinstance(num_layers, int) else None,
        language_model=row.get("language_model"),
        classifier=row.get("classifier"),
        output=row.get("output", ""),
        head=frozenset(row.get("head", ())),
        optional=frozenset(row.get("optional", ())),
        has_linear_head="linear" in row,
        renamed=tuple(row.get("renamed", ())),
    )


@cache
def known_classifiers() -> frozenset[str]:
    """The classes for sequence classification of all model types."""
    return frozenset(row["classifier"] for row in read_table().values() if "classifier" in row)
