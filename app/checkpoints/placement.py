"""Chooses a model's device and dtypes: one device, or several with a map from modules to devices."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from app.checkpoints.extras import is_installed, require_package
from app.checkpoints.memory import available_bytes, loading_bytes, require_memory
from app.engine.devices import with_index
from app.engine.transformers_internals import unsplittable_modules
from app.engine.units import byte_size
from app.errors import ModelRefusedError, one_line

SPLIT = "split"
WEIGHTS_FRACTION = 0.8
"""The fraction of a GPU's free memory that a split model's weights may take; the rest is for forward passes."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The device and dtypes with which a model is loaded."""

    device: torch.device  # of its inputs: the first if there are several
    dtype: torch.dtype  # of its arithmetic, and of the weights that int8 does not quantize
    int8: bool = False
    split: bool = False


def place(device: str, dtype: str) -> Placement:
    """The placement for the settings `device` and `dtype`.

    Raises ModelRefusedError if the device cannot be used, or a package is missing.
    """
    if dtype == "int8":
        require_package("torchao", "dtype int8")
    first = first_accelerator() if device == SPLIT else pick_device(device)
    return Placement(first, pick_dtype(dtype, first), int8=dtype == "int8", split=device == SPLIT)


def pick_device(wanted: str) -> torch.device:
    """The device of that name; `auto` is the first accelerator (CUDA, MPS), else the CPU."""
    if wanted == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return with_index(torch.device(accelerator.type if accelerator is not None else "cpu"))
    try:
        device = with_index(torch.device(wanted))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelRefusedError(
            f"device {wanted!r} cannot be used ({one_line(error)}); set it to auto or cpu"
        ) from error
    return device


def first_accelerator() -> torch.device:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        raise ModelRefusedError("device 'split' cannot be used (there is no GPU to split over); set it to auto or cpu")
    return torch.device(accelerator.type, 0)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of the arithmetic. `int8` applies to weights only; the arithmetic is then that of `auto`."""
    if wanted in {"auto", "int8"}:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = getattr(torch, wanted)
    assert isinstance(dtype, torch.dtype)
    return dtype


def device_map_of(
    source: str,
    placement: Placement,
    net: Any,
    head: str | None,
    types: Mapping[str, torch.dtype],
    placed: Collection[str] = (),
) -> dict[str, Any] | None:
    """The device of each module of `net`, which may be on `meta`; None means CPU memory. The parameters named in `placed` are
    already in memory.

    Raises ModelRefusedError if there is not enough memory.
    """
    if placement.split:
        return split_map(source, net, head, types, free_memory(placement.device))
    num_bytes = loading_bytes(net, types, placed)
    require_memory(source, placement.device, num_bytes)
    if placement.device.type == "cpu":
        return None
    if is_installed("accelerate"):  # loads directly to the device
        return {"": placement.device}
    require_memory(source, torch.device("cpu"), num_bytes)
    return None


def free_memory(first: torch.device) -> dict[int | str, int]:
    """Bytes that weights may take on each accelerator, by index, and in CPU memory."""
    room: dict[int | str, int] = {}
    for index in range(torch.accelerator.device_count()):
        free = available_bytes(torch.device(first.type, index))
        room[index] = int((free or 0) * WEIGHTS_FRACTION)
    room["cpu"] = available_bytes(torch.device("cpu")) or 0
    return room


def split_map(
    source: str, net: Any, head: str | None, types: Mapping[str, torch.dtype], room: Mapping[int | str, int]
) -> dict[str, int | str]:
    """The device of each module: evenly over the accelerators in the order of the forward pass, the rest in CPU memory.

    Modules in CPU memory are copied for each forward pass. No decoder layer is split, and the head is always on a device.

    Raises ModelRefusedError if the model does not fit in all of them: a disk would be too slow.
    """
    from accelerate.utils import get_balanced_memory, infer_auto_device_map

    options = {"no_split_module_classes": unsplittable_modules(net), "special_dtypes": dict(types)}
    device_map: dict[str, int | str] = dict(
        infer_auto_device_map(net, get_balanced_memory(net, dict(room), **options), **options)
    )
    if "disk" in device_map.values():
        raise ModelRefusedError(
            f"{source} needs {byte_size(loading_bytes(net, types))} and {byte_size(sum(room.values()))} is free on "
            f"{len(room) - 1} GPUs and in memory; use dtype int8, more GPUs, or a smaller checkpoint"
        )
    for module, device in device_map.items():
        if device == "cpu" and head is not None and f"{head}.".startswith(f"{module}."):
            device_map[module] = 0
    return device_map
