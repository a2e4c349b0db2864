"""How much memory a model takes and how much a device has left. Reads shapes and counters; loads nothing."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from app.engine.cgroups import CGROUPS, PROC, control_groups
from app.engine.units import byte_size
from app.errors import ModelRefusedError

HEADROOM = 0.05
"""What loading takes beyond the weights: the tensors that are being read, converted or hashed."""
PREFIX_CACHE_SHARE = 0.1  # of the memory that is free once the models are loaded
CUDA_RESERVE = 0.1
"""Of what the weights and the largest batch leave: for libraries, for what the allocator cannot join, and for other kernels."""
MAX_CPU_PREFIX_CACHE_BYTES = 1_000_000_000
REMEDIES = "use dtype bfloat16 or int8, a smaller checkpoint, or device split over several GPUs"


def require_memory(source: str, device: torch.device, num_bytes: int) -> None:
    """Raises ModelRefusedError where the device is known to have less than `num_bytes` left for `source`."""
    available = available_bytes(device)
    if available is not None and num_bytes > available:
        raise ModelRefusedError(
            f"{source} needs {byte_size(num_bytes)} on {device} and {byte_size(available)} is free; {REMEDIES}"
        )


def prefix_cache_bytes(device: torch.device, megabytes: float | None, batch_bytes: int = 0) -> int:
    """Bytes that all prefix caches on a device may take, by REWARD_PREFIX_CACHE_MB.

    By default a tenth of what is free, at most 1 GB on the CPU; on CUDA all that is free but for `batch_bytes`, which the
    largest batch takes, and a reserve.

    Raises ModelRefusedError where the device is known to have less than was asked for.
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


def loading_bytes(net: nn.Module, types: Mapping[str, torch.dtype], there: Collection[str] = ()) -> int:
    """Bytes that a model of this shape takes while it is loaded, each parameter as its type; it may be on `meta`.

    The parameters named in `there` are in memory already and are not copied.
    """
    weights = sum(weight.numel() * types[name].itemsize for name, weight in net.named_parameters() if name not in there)
    return int((weights + sum(buffer.nbytes for buffer in net.buffers())) * (1 + HEADROOM))


def available_bytes(device: torch.device) -> int | None:
    """Bytes that a process may still take on `device`; None where nothing says."""
    if device.type == "cpu":
        limits = [*host_limits(PROC), *cgroup_limits(PROC, CGROUPS)]
        return min(limits, default=None)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    with suppress(RuntimeError, AttributeError):  # not every accelerator counts
        free, _ = torch.accelerator.get_memory_info(device)
        # What the allocator holds and nothing uses is as good as free.
        return free + torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    return None


def host_limits(proc: Path) -> Iterator[int]:
    """What the kernel would hand out without swapping."""
    with suppress(OSError):
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def cgroup_limits(proc: Path, root: Path) -> Iterator[int]:
    """What is left of each memory limit that this process is under, in control groups of version 1 and 2."""
    for group in control_groups("memory", proc, root):
        if group.version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            names = ("memory.max", "memory.current", "inactive_file")
        yield from room_in(group.path, *names)


def room_in(group: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    """The group's limit less what it uses, but for cached files, which the kernel drops when memory is short."""
    with suppress(OSError, ValueError):  # no such file, or "max": no limit
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        yield most - used + int(stat.get(reclaimable, 0))
