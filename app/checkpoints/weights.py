"""Reads a checkpoint's safetensors files tensor by tensor, and hashes them. Knows no models."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from app.checkpoints.files import BrokenFileError, read_header
from app.errors import one_line

FileSignature = tuple[int, int, int]


def open_safetensors(file: Path) -> Any:
    """Opens the file for reading, not as a memory map: overwriting or truncating a mapped file would change the weights of the
    running service, or end it with SIGBUS. Raises BrokenFileError."""
    try:
        return safe_open(file, framework="pt", backend="pread")
    except SafetensorError as error:
        read_header(file)  # raises a more precise error for a truncated file
        raise BrokenFileError(f"{file} is not a safetensors file: {one_line(error)}") from error


def weights_of(files: list[Path]) -> dict[str, Any]:
    """Every tensor of the files by name. Each is read at access, so that no file is in memory as a whole."""
    weights: dict[str, Any] = {}
    for file in files:
        tensors = open_safetensors(file)
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            if name in weights:
                raise ValueError(f"two files hold a tensor {name}: remove it from {file.name}, or that file")
            weights[name] = tensors.get_slice(name)
    return weights


@dataclass(frozen=True, slots=True)
class FiniteWeights:
    """Checks weights for NaN and infinity as a model reads them, because later they may be quantized."""

    dtype: torch.dtype  # that they are loaded as, in which a large float32 number may become infinity
    non_finite: list[str] = field(default_factory=list)
    """The names of those with NaN or infinity so far."""

    def watch(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        return {name: CheckedTensor(name, stored, self) for name, stored in weights.items()}


@dataclass(frozen=True, slots=True)
class CheckedTensor:
    """A stored tensor that is checked when `tensor[...]` reads it, as transformers does from several threads."""

    name: str
    stored: Any
    weights: FiniteWeights

    def __getitem__(self, index: Any) -> Tensor:
        tensor: Tensor = self.stored[index]
        if tensor.is_floating_point() and tensor.numel():
            extremes = torch.stack(torch.aminmax(tensor))  # NaN if it has one; needs no extra memory, unlike isfinite
            if not torch.isfinite(extremes.to(self.weights.dtype)).all():
                self.weights.non_finite.append(self.name)
        return tensor

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.stored, attribute)


def signatures_of(files: list[Path]) -> list[FileSignature]:
    """Inode, size and modification time of each file, which change if a file is written or replaced."""
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files)]


def weights_hash(files: list[Path]) -> str:
    """SHA-256 of the files' bytes, the first 16 hex digits: equal for equal files."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return f"sha256:{digest.hexdigest()[:16]}"


def hub_commit(file: Path) -> str | None:
    """The commit of a file in the hub's cache, `.../snapshots/COMMIT/FILE`; None for a file elsewhere."""
    folder = file.parent
    return folder.name if folder.parent.name == "snapshots" else None
