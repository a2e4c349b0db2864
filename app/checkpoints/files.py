"""A checkpoint's files by name, and what safetensors files say of their tensors. Needs no torch for a directory."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METADATA = "__metadata__"
MAX_HEADER_BYTES = 100_000_000
"""What the format allows."""
UNTRAINED_MARK = {"reward_head": "untrained"}
"""Metadata that `reward-service init` leaves in the file of a head; any training that saves its model drops it."""

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.safetensors")
HEAD_NAME = "value_head.safetensors"
"""LLaMA-Factory's, beside the weights of the language model or of the adapter."""


def find_file(path: str, name: str, *, local_files_only: bool) -> Path | None:
    """A file of a directory, or of a hub id unless `local_files_only`; None if there is no file of this name."""
    if Path(path).is_dir():
        file = Path(path, name)
        return file if file.is_file() else None
    from app.engine.transformers_internals import find_in_hub

    return find_in_hub(path, name, local_files_only=local_files_only)


def weight_files(path: str, *, local_files_only: bool) -> list[Path]:
    """The safetensors files that hold the weights, one or those that the index names, and a value head's own file.

    Raises FileNotFoundError where there are none, or one that the index names is missing.
    """
    for name in WEIGHT_NAMES:
        index = find_file(path, f"{name}.index.json", local_files_only=local_files_only)
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index is not None else [name]
        files = {each: find_file(path, each, local_files_only=local_files_only) for each in names}
        found = [file for file in files.values() if file is not None]
        if len(found) == len(names):
            return [*found, *head_files(path, local_files_only=local_files_only)]
        if index is not None:
            raise FileNotFoundError(f"no file named {min(name for name, file in files.items() if file is None)}")
    raise FileNotFoundError(f"no file named {WEIGHT_NAMES[0]}")


def head_files(path: str, *, local_files_only: bool) -> list[Path]:
    """The file of a value head that was saved beside its language model or adapter, if there is one."""
    file = find_file(path, HEAD_NAME, local_files_only=local_files_only)
    return [] if file is None else [file]


def read_header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of itself. Raises ValueError for another file."""
    with file.open("rb") as stream:
        try:
            (num_bytes,) = struct.unpack("<Q", stream.read(8))
        except struct.error as error:
            raise ValueError(f"{file.name} is no safetensors file: {error}") from error
        header = json.loads(stream.read(min(num_bytes, MAX_HEADER_BYTES)))
    if not isinstance(header, dict):
        raise ValueError(f"{file.name} is no safetensors file: its header is no object")  # noqa: TRY004 - a file's fault
    return header


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a tensor from the header of its file."""

    shape: tuple[int, ...]


def shapes_of(files: list[Path]) -> dict[str, Shape]:
    """Every tensor of the files by name. Raises ValueError."""
    shapes = {}
    for file in files:
        for name, entry in read_header(file).items():
            if name != METADATA:
                shapes[name] = Shape(tuple(entry["shape"]))
    return shapes


def shape_of(stored: Any) -> tuple[int, ...]:
    """Of a tensor, or of one that is not read yet."""
    return tuple(stored.get_shape() if hasattr(stored, "get_shape") else stored.shape)


def is_marked_untrained(files: list[Path]) -> bool:
    """Whether a safetensors file among `files` has the mark; a GGUF file cannot."""
    return any(
        UNTRAINED_MARK.items() <= read_header(file).get(METADATA, {}).items()
        for file in files
        if file.suffix == ".safetensors"
    )
