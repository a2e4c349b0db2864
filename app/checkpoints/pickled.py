"""Finds weights saved as pickles (`.bin`), which the service never opens; `reward-service convert` converts them."""

from collections.abc import Mapping
from pathlib import Path

from pydantic_core import from_json

from app.errors import StartError, one_line

COUNTERPARTS = {
    "pytorch_model.bin": "model.safetensors",
    "adapter_model.bin": "adapter_model.safetensors",
    "value_head.bin": "value_head.safetensors",
}
"""File names of weights that trainers save as pickles, each with its name as safetensors."""


def pickled_weights(directory: Path) -> list[str]:
    """The names in COUNTERPARTS that the directory has, as one file or as an index of several."""
    return [
        name for name in COUNTERPARTS if (directory / name).is_file() or (directory / f"{name}.index.json").is_file()
    ]


def needs_conversion(directory: Path) -> list[str]:
    """Those of `pickled_weights` without a safetensors counterpart."""
    return [
        name
        for name in pickled_weights(directory)
        if not any((directory / f"{COUNTERPARTS[name]}{suffix}").is_file() for suffix in ("", ".index.json"))
    ]


def index_of(directory: Path, name: str) -> Mapping[str, str] | None:
    """The file of each tensor if the weights called `name` are sharded, else None. Raises StartError for an invalid index."""
    file = directory / f"{name}.index.json"
    if not file.is_file():
        return None
    try:
        files = from_json(file.read_bytes())["weight_map"]
        is_valid = isinstance(files, dict) and all(map(is_file_name, files.values()))
    except (ValueError, KeyError, TypeError) as error:
        raise StartError(f"{file} is not an index of weights ({one_line(error)}); get an intact file") from error
    if not is_valid:
        raise StartError(
            f"{file} is not an index of weights: weight_map must name a file of {directory} for each tensor"
        )
    return dict(files)


def is_file_name(value: object) -> bool:
    return isinstance(value, str) and Path(value).name == value
