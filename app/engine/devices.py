"""Canonical device names, copies to a device that the host need not wait for, and errors of devices."""

import re
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def with_index(device: torch.device) -> torch.device:
    """`cuda` with the current index, such as `cuda:0`: the same device to torch, but unequal when compared."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def upload(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """The values on the device. A copy to a GPU is asynchronous."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


NO_MEMORY = re.compile(
    "can't allocate memory|not enough memory|^could not (create|execute) a primitive$", re.IGNORECASE
)
"""What torch says on the CPU. The last is all that oneDNN says."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means too little memory, so that a smaller batch may succeed; on the CPU known by its message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


class DeviceLostError(Exception):
    """A device that this process can no longer use."""


def is_lost(device: torch.device) -> bool:
    """Whether even the smallest computation fails on the device.

    After some GPU faults (an illegal address, a failed assertion, a memory error) every later call of the process fails.
    """
    if device.type == "cpu":
        return False
    try:
        torch.ones(1, device=device).sum().item()
    except Exception as error:  # noqa: BLE001 - each library raises its own
        return not is_out_of_memory(error)
    return False


def free_memory(device: torch.device) -> None:
    """Returns the memory that torch caches to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
