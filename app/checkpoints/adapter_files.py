"""Finds an adapter's files and its base. Needs no torch for a directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.checkpoints.files import find_file, shape_of
from app.errors import ModelRefusedError
from app.settings import HUB_PREFIX

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def holds_adapter(path: str, *, local_files_only: bool) -> bool:
    """Whether a directory or a hub id holds an adapter and no complete model."""
    exists = [
        find_file(path, name, local_files_only=local_files_only) is not None
        for name in (CONFIG, "model.safetensors", "model.safetensors.index.json")
    ]
    return exists == [True, False, False]


def head_rows(tensors: Mapping[str, Any], head: str) -> int | None:
    """The number of outputs of the head among an adapter's tensors; None if the adapter uses the base's head."""
    saved = (each for name, each in tensors.items() if name.endswith(f".{head}.weight") and ".lora_" not in name)
    return next((shape_of(each)[0] for each in saved), None)


def find_base(source: str, directory: Path, named: str, *, may_be_remote: bool) -> str:
    """The base that the adapter's config names: a directory, tried as it is, below the adapter's and beside it, or a hub id.

    Raises ModelRefusedError if there is no such directory and `may_be_remote` is false.
    """
    if named.startswith(HUB_PREFIX):
        return named
    directories = [Path(named), directory / named, directory.parent / Path(named).name] if named else []
    for each in directories:
        if (each / "config.json").is_file():
            return str(each)
    if named and may_be_remote:
        return f"{HUB_PREFIX}{named}"
    raise ModelRefusedError(
        f"{source} is an adapter of {named or 'an unnamed base'}, which is no directory here; put the base at "
        f"{directory.parent / (Path(named).name or 'base')}, or set base_model_name_or_path in {CONFIG} to its "
        f"directory, or to {HUB_PREFIX} and its hub id"
    )
