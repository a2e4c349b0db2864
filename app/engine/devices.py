"""Devices by one name each, and copies to them that do not make the host wait."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def with_index(device: torch.device) -> torch.device:
    """`cuda` as `cuda:0`, or whichever is current: torch takes them for one device and compares them as two."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def upload(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """The values on the device. A copy to a GPU is queued behind its work: the host goes on at once."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may succeed: torch's own error on a GPU, the allocator's words on a CPU."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in words or "not enough memory" in words)
    )


class DeviceLostError(Exception):
    """A device on which nothing can be computed any more in this process."""


def is_lost(device: torch.device) -> bool:
    """Whether not even the smallest computation succeeds on the device.

    Some faults of a GPU (an illegal address, a failed assertion, a memory error) make every later call of the process fail.
    """
    if device.type == "cpu":
        return False
    try:
        torch.ones(1, device=device).sum().item()
    except Exception as error:  # noqa: BLE001 - each library has its own
        return not is_out_of_memory(error)
    return False


def free_memory(device: torch.device) -> None:
    """Gives memory that torch keeps for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
