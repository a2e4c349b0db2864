"""Converts `.bin` weights to safetensors, for `reward-service convert`. The server never imports this: it opens no pickle.

A `.bin` file is a pickle, which can contain code. It is read with torch's `weights_only`, which restores only tensors and
plain containers and raises for everything else, so no such code runs.
"""

import json
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from app.checkpoints.pickled import COUNTERPARTS, index_of, pickled_weights
from app.errors import StartError, one_line
from app.files.output import new_directory, share

FORMAT = {"format": "pt"}
"""Metadata that transformers requires in a safetensors file."""
NOT_COPIED = {".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".ot", ".gguf", ".onnx"}
"""Suffixes of files that hold weights in other formats, or a trainer's state."""
OUTPUT_EMBEDDINGS = ("lm_head.", "embed_out.", "output.", "decoder.")


@dataclass(slots=True)
class Converted:
    """What was written."""

    directory: Path
    files: list[str] = field(default_factory=list)
    num_tensors: int = 0
    copies: dict[str, str] = field(default_factory=dict)
    """Tensors that were left out because they share memory with another, by name, and that other one."""


def convert(source: Path, out: Path | None = None) -> Converted:
    """Writes the `.bin` weights in `source` as safetensors: beside them, or with the rest of the checkpoint into the new
    directory `out`. Names and dtypes stay; of tensors that share memory, one is kept.

    Files appear only when all are written, and nothing is overwritten. Raises StartError if there is nothing to convert, a
    target exists already, or a file contains anything but tensors.
    """
    if not source.is_dir():
        raise StartError(f"{source} is not a directory; give a directory with .bin weights")
    names = pickled_weights(source)
    if not names:
        raise StartError(
            f"{source} has no weights to convert: none of {', '.join(COUNTERPARTS)}, with or without an index"
        )
    for name in names:
        for existing in (COUNTERPARTS[name], f"{COUNTERPARTS[name]}.index.json"):
            if (source / existing).exists():
                raise StartError(f"{source} has {existing} beside {name}; remove the one that is not wanted")
    with directory_for(source, out) as directory:
        converted = Converted(out or source)
        for name in names:
            convert_file(source, name, directory, converted)
    return converted


@contextmanager
def directory_for(source: Path, out: Path | None) -> Iterator[Path]:
    """A temporary directory for the files, which are moved into place at the end of the context."""
    if out is not None:
        with new_directory(out) as directory:
            copy_rest(source, directory)
            yield directory
        return
    partial = source / "safetensors.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        share(partial)
        # The index last, so that the files that it names exist.
        files = sorted(partial.iterdir(), key=lambda file: file.suffix == ".json")
        for file in files:
            if (source / file.name).exists():
                raise StartError(f"{source} has {file.name} already; remove it, or give a new directory to write to")
        for file in files:
            file.rename(source / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_rest(source: Path, directory: Path) -> None:
    """Copies everything but weights: config, tokenizer, templates, declarations."""
    for file in source.iterdir():
        if file.is_file() and file.suffix not in NOT_COPIED and not file.name.endswith(".bin.index.json"):
            shutil.copyfile(file, directory / file.name)
        elif file.is_dir() and not file.name.startswith(".") and not any(map(holds_weights, file.rglob("*"))):
            shutil.copytree(file, directory / file.name)


def holds_weights(file: Path) -> bool:
    return file.suffix in NOT_COPIED or file.suffix == ".safetensors"


def convert_file(source: Path, name: str, directory: Path, converted: Converted) -> None:
    """Converts the weights called `name`: one file, or the shards that its index names."""
    target = COUNTERPARTS[name]
    index = index_of(source, name)
    if index is None:
        tensors, copies = deduplicated(read_tensors(source / name))
        write(tensors, copies, directory / target, converted)
        return
    files: dict[str, str] = {}
    total = 0
    for shard in sorted(set(index.values())):
        tensors = read_tensors(source / shard)
        missing = [each for each, file in index.items() if file == shard and each not in tensors]
        if missing:
            raise StartError(
                f"{source / shard} lacks {missing[0]}, which {name}.index.json says it has; get an intact file"
            )
        if twice := files.keys() & tensors.keys():
            raise StartError(
                f"{source / shard} has {min(twice)}, which an earlier file has too; get an intact checkpoint"
            )
        tensors, copies = deduplicated(tensors)
        shard_target = shard.replace(name.removesuffix(".bin"), target.removesuffix(".safetensors"))
        shard_target = shard_target.removesuffix(".bin") + ".safetensors"
        write(tensors, copies, directory / shard_target, converted)
        files |= dict.fromkeys(tensors, shard_target)
        total += sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": total}, "weight_map": files}
    (directory / f"{target}.index.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` file by name, memory-mapped if the format allows it."""
    if not file.is_file():
        raise StartError(f"{file} is missing, but the index names it; get the whole checkpoint")
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        what = one_line(error).partition("WeightsUnpickler error: ")[2] or one_line(error)
        raise StartError(
            f"{file} contains more than tensors and is not opened ({what[:160].partition(', but')[0]}); "
            "get a checkpoint in safetensors from its authors"
        ) from error
    except Exception as error:
        raise StartError(f"{file} cannot be read ({one_line(error)}); get an intact file") from error
    if not isinstance(content, Mapping):
        raise StartError(
            f"{file} contains a {type(content).__name__}, not tensors by name; save the model's state_dict"
        )
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            what = "a sparse tensor" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise StartError(
                f"{file} has {what} under {name!r} where a dense tensor is expected; save the model's state_dict"
            )
    return dict(content)


def deduplicated(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, contiguous and with memory of its own; and the names that were left out, each with the one kept.

    A trunk's name is preferred to that of an output embedding tied to it, then the name with the fewest parts:
    `transformer.norm.weight` to `model.model.norm.weight`.
    """
    same: dict[object, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        view = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        same[view if tensor.numel() else name].append(name)
    kept: dict[str, Tensor] = {}
    copies: dict[str, str] = {}
    storages: set[int] = set()
    for names in same.values():
        first, *others = sorted(names, key=preference)
        tensor = tensors[first].detach()
        storage = tensor.untyped_storage().data_ptr()
        is_part = storage in storages or tensor.nbytes != tensor.untyped_storage().nbytes()
        kept[first] = tensor.clone(memory_format=torch.contiguous_format) if is_part else tensor.contiguous()
        storages.add(storage)
        copies |= dict.fromkeys(others, first)
    return kept, copies


def preference(name: str) -> tuple[bool, int, str]:
    return any(f".{part}" in f".{name}" for part in OUTPUT_EMBEDDINGS), name.count("."), name


def write(tensors: dict[str, Tensor], copies: dict[str, str], file: Path, converted: Converted) -> None:
    save_file(tensors, file, metadata=FORMAT | copies)
    converted.files.append(file.name)
    converted.num_tensors += len(tensors)
    converted.copies |= copies
