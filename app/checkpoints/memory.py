"""How much memory a model takes and how much a device has free, from shapes and counters. Loads nothing."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from app.engine.cgroups import CGROUPS, PROC, control_groups
from app.engine.units import byte_size
from app.errors import ModelRefusedError

HEADROOM = 0.05
"""Additional memory during loading, as a fraction of the weights: tensors that are being read, converted or hashed."""
PREFIX_CACHE_SHARE = 0.1  # of the memory that is free once the models are loaded
CUDA_RESERVE = 0.1
"""The fraction of the memory left by the weights and the largest batch that stays free: for libraries and fragmentation."""
MAX_CPU_PREFIX_CACHE_BYTES = 1_000_000_000
REMEDIES = "use dtype bfloat16 or int8, a smaller checkpoint, or device split over several GPUs"


def require_memory(source: str, device: torch.device, num_bytes: int) -> None:
    """Raises ModelRefusedError if the device is known to have less than `num_bytes` free for `source`."""
    available = available_bytes(device)
    if available is not None and num_bytes > available:
        raise ModelRefusedError(
            f"{source} needs {byte_size(num_bytes)} on {device} and {byte_size(available)} is free; {REMEDIES}"
        )


def prefix_cache_bytes(device: torch.device, megabytes: float | None, batch_bytes: int = 0) -> int:
    """Bytes that all prefix caches on a device may take; `megabytes` is REWARD_PREFIX_CACHE_MB.

    By default a tenth of the free memory, on the CPU at most 1 GB; on CUDA all free memory except `batch_bytes`, which the
    largest batch takes, and a reserve.

    Raises ModelRefusedError if the device is known to have less than `megabytes` free.
    """
    available = available_bytes(device)
    if available is not None and device.type == "cuda":
        available = max(int((available - batch_bytes) * (1 - CUDA_RESERVE)), 0)
    if megabytes is None:
        share = int((available or 0) * (1 if device.type == "cuda" else PREFIX_CACHE_SHARE))
        return min(share, MAX_CPU_PREFIX_CACHE_BYTES) if device.type == "cpu" else share
    wanted = int(megabytes * 1e6)
    if available is not None and wanted > available:
        raise ModelRefusedError(
            f"the prefix cache needs {byte_size(wanted)} on {device} and {byte_size(available)} is free; "
            f"set REWARD_PREFIX_CACHE_MB to {available // 2_000_000} or less, or to 0 for none"
        )
    return wanted


def loading_bytes(net: nn.Module, types: Mapping[str, torch.dtype], placed: Collection[str] = ()) -> int:
    """Bytes that loading `net`, which may be on `meta`, takes with each parameter in its dtype of `types`.

    The parameters named in `placed` are already in memory and are not copied.
    """
    weights = sum(
        weight.numel() * types[name].itemsize for name, weight in net.named_parameters() if name not in placed
    )
    return int((weights + sum(buffer.nbytes for buffer in net.buffers())) * (1 + HEADROOM))


def available_bytes(device: torch.device) -> int | None:
    """Bytes that this process may still allocate on `device`; None if unknown."""
    if device.type == "cpu":
        limits = [*host_limits(PROC), *cgroup_limits(PROC, CGROUPS)]
        return min(limits, default=None)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    with suppress(RuntimeError, AttributeError):  # not every accelerator reports it
        free, _ = torch.accelerator.get_memory_info(device)
        # Memory that torch's allocator holds but no tensor uses counts as free.
        return free + torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    return None


def host_limits(proc: Path) -> Iterator[int]:
    """The bytes that are available without swapping."""
    with suppress(OSError):
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def cgroup_limits(proc: Path, root: Path) -> Iterator[int]:
    """The bytes left under each memory limit of this process's control groups, versions 1 and 2."""
    for group in control_groups("memory", proc, root):
        if group.version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            names = ("memory.max", "memory.current", "inactive_file")
        yield from room_in(group.path, *names)


def room_in(group: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    """The group's limit minus its use. Cached files do not count as used, because the kernel drops them when needed."""
    with suppress(OSError, ValueError):  # no such file, or "max": no limit
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        yield most - used + int(stat.get(reclaimable, 0))
