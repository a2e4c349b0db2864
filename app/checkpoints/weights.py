"""A checkpoint's safetensors files: read tensor by tensor, hashed. Knows nothing of models."""

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


def opened(file: Path) -> Any:
    """Read, not mapped: what happens to a mapped file afterwards, a new version in its place or fewer bytes, would
    happen to the weights of the running service, or end it by SIGBUS. Raises BrokenFileError."""
    try:
        return safe_open(file, framework="pt", backend="pread")
    except SafetensorError as error:
        read_header(file)  # says more of a file that was cut off
        raise BrokenFileError(f"{file} is no safetensors file: {one_line(error)}") from error


def weights_of(files: list[Path]) -> dict[str, Any]:
    """Every tensor of the files by name, not yet read; each is when it is asked for, so that no file is held whole."""
    weights: dict[str, Any] = {}
    for file in files:
        tensors = opened(file)
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            if name in weights:
                raise ValueError(f"two files hold a tensor {name}, the second is {file.name}")
            weights[name] = tensors.get_slice(name)
    return weights


@dataclass(frozen=True, slots=True)
class FiniteWeights:
    """Weights on their way into a model, each looked at as it passes: once it is placed, or quantized, it is too late."""

    dtype: torch.dtype  # what they are loaded as, where a large float32 may become an infinity
    non_finite: list[str] = field(default_factory=list)
    """The names of those that held NaN or infinity, so far."""

    def watch(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        return {name: CheckedTensor(name, stored, self) for name, stored in weights.items()}


@dataclass(frozen=True, slots=True)
class CheckedTensor:
    """Read by `tensor[...]`, as transformers does it, from a pool of threads; the rest of it is the stored one's."""

    name: str
    stored: Any
    passed: FiniteWeights

    def __getitem__(self, index: Any) -> Tensor:
        tensor: Tensor = self.stored[index]
        if tensor.is_floating_point() and tensor.numel():
            extremes = torch.stack(torch.aminmax(tensor))  # NaN if there is one; takes no memory, unlike isfinite
            if not torch.isfinite(extremes.to(self.passed.dtype)).all():
                self.passed.non_finite.append(self.name)
        return tensor

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.stored, attribute)


def signatures_of(files: list[Path]) -> list[FileSignature]:
    """What changes when somebody writes to the files, or puts others in their place."""
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files)]


def weights_hash(files: list[Path]) -> str:
    """sha256 over the files' bytes: equal for equal weights."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return f"sha256:{digest.hexdigest()[:16]}"


def hub_commit(file: Path) -> str | None:
    """The commit that a file of the hub's cache is of: `.../snapshots/COMMIT/FILE`; None for a file of a directory."""
    folder = file.parent
    return folder.name if folder.parent.name == "snapshots" else None
