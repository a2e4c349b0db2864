"""Finds a checkpoint's files, and reads the headers of safetensors files. Needs no torch for a directory."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from app.checkpoints.pickled import is_file_name
from app.errors import ModelRefusedError, one_line

METADATA = "__metadata__"
PREFIX_BYTES = 8
"""The length of the header, which follows."""
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
UNTRAINED_MARK = {"reward_head": "untrained"}
"""Metadata that `reward-service init` writes into the file with the head; saving the model after training drops it."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text begins that Git keeps in the place of a large file."""
MAX_POINTER_BYTES = 1024
TOKENIZER_FILE = re.compile(r"token|vocab|spiece|sentencepiece|bpe")

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.safetensors")
HEAD_NAME = "value_head.safetensors"
"""LLaMA-Factory's file for the head, beside the weights of the language model or the adapter."""


class BrokenFileError(ValueError):
    """A file that is not what its name says; the message begins with its path."""


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, and BrokenFileError for anything else."""
    if not file.is_file():
        raise FileNotFoundError(f"no file named {file.name}")
    try:
        read = from_json(file.read_bytes())
    except ValueError as error:
        raise BrokenFileError(f"{file} is not valid JSON: {one_line(error)}") from error
    if not isinstance(read, dict):
        raise BrokenFileError(f"{file} is not a JSON object")
    return read


def lfs_pointers(directory: Path) -> list[str]:
    """The names of the files of a directory that Git LFS has not fetched."""
    files = sorted(file for file in directory.glob("*") if file.is_file() and file.stat().st_size < MAX_POINTER_BYTES)
    return [file.name for file in files if file.read_bytes().startswith(LFS_POINTER)]


def broken_json(directory: Path) -> list[str]:
    """The names of the directory's JSON files that hold no JSON."""
    broken = []
    for file in sorted(directory.glob("*.json")):
        try:
            from_json(file.read_bytes())
        except ValueError:
            broken.append(file.name)
    return broken


def lacks_tokenizer(directory: Path) -> bool:
    """Whether a checkpoint's directory has no file that a tokenizer is read from."""
    return (directory / "config.json").is_file() and not any(
        TOKENIZER_FILE.search(file.name) for file in directory.iterdir()
    )


def find_file(path: str, name: str, *, local_files_only: bool) -> Path | None:
    """A file of a directory, or of a hub id unless `local_files_only`; None if there is no file of this name."""
    if Path(path).is_dir():
        file = Path(path, name)
        return file if file.is_file() else None
    from app.engine.transformers_internals import find_in_hub

    return find_in_hub(path, name, local_files_only=local_files_only)


def weight_files(path: str, *, local_files_only: bool) -> list[Path]:
    """The safetensors files with the weights (one, or those that the index names), and the file of a value head.

    Raises FileNotFoundError if there are none, or one that the index names is missing, and BrokenFileError for an index that
    names none.
    """
    for name in WEIGHT_NAMES:
        index = find_file(path, f"{name}.index.json", local_files_only=local_files_only)
        names = shards_of(index) if index is not None else [name]
        files = {each: find_file(path, each, local_files_only=local_files_only) for each in names}
        found = [file for file in files.values() if file is not None]
        if len(found) == len(names):
            return [*found, *head_files(path, local_files_only=local_files_only)]
        if index is not None:
            raise FileNotFoundError(f"no file named {min(name for name, file in files.items() if file is None)}")
    raise FileNotFoundError(f"no file named {WEIGHT_NAMES[0]}")


def find_gguf(directory: str) -> Path | None:
    """The GGUF file of a directory without safetensors; None if there is none, or for a hub id.

    Raises ModelRefusedError if there are several.
    """
    files = sorted(Path(directory).glob("*.gguf"))
    if not files or any(Path(directory).glob("*.safetensors")):
        return None
    if len(files) > 1:
        raise ModelRefusedError(
            f"{directory} has {len(files)} GGUF files ({', '.join(file.name for file in files)}); keep the one to serve"
        )
    return files[0]


def shards_of(index: Path) -> list[str]:
    """The files that an index names. Raises BrokenFileError."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(map(is_file_name, files.values())):
        raise BrokenFileError(f"{index} has no weight_map that names a file for each tensor")
    return sorted(set(files.values()))


def head_files(path: str, *, local_files_only: bool) -> list[Path]:
    """The file of a value head that was saved beside its language model or adapter, if there is one."""
    file = find_file(path, HEAD_NAME, local_files_only=local_files_only)
    return [] if file is None else [file]


def read_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: names, dtypes and shapes. Raises BrokenFileError for another or an incomplete file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        num_bytes = int.from_bytes(stream.read(PREFIX_BYTES), "little")
        if not 0 < num_bytes <= min(size - PREFIX_BYTES, MAX_HEADER_BYTES):
            raise BrokenFileError(f"{file} is not a complete safetensors file: it has {size:,} bytes and no header")
        try:
            header = from_json(stream.read(num_bytes))
            dict(header.get(METADATA, {}))
            ends = [read_entry(entry)[1] for name, entry in header.items() if name != METADATA]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise BrokenFileError(
                f"{file} is not a safetensors file: its header is invalid ({one_line(error)})"
            ) from error
    if (whole := PREFIX_BYTES + num_bytes + max(ends, default=0)) != size:
        raise BrokenFileError(f"{file} is incomplete: it has {size:,} bytes, and its header says {whole:,}")
    return dict(header)


@dataclass(frozen=True, slots=True)
class Shape:
    """A tensor of which only the shape is known, from the header of its file."""

    shape: tuple[int, ...]
    dtype: str = "F32"
    """As the file names it."""

    def get_dtype(self) -> str:
        return self.dtype


def read_entry(entry: Any) -> tuple[Shape, int]:
    """What a header says of a tensor, and where its bytes end behind the header."""
    return Shape(tuple(entry["shape"]), entry["dtype"]), entry["data_offsets"][1]


def shapes_of(files: list[Path]) -> dict[str, Shape]:
    """The shape of every tensor in the files, by name. Raises BrokenFileError."""
    shapes = {}
    for file in files:
        for name, entry in read_header(file).items():
            if name != METADATA:
                shapes[name], _ = read_entry(entry)
    return shapes


def shape_of(stored: Any) -> tuple[int, ...]:
    """The shape of a tensor, read or not."""
    return tuple(stored.get_shape() if hasattr(stored, "get_shape") else stored.shape)


def is_marked_untrained(files: list[Path]) -> bool:
    """Whether one of the safetensors files has UNTRAINED_MARK."""
    return any(
        UNTRAINED_MARK.items() <= read_header(file).get(METADATA, {}).items()
        for file in files
        if file.suffix == ".safetensors"
    )
