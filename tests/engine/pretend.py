"""Two accelerators that are not there: tensors that say they are on `pretend:0` or `pretend:1` and compute on the CPU.

As on real ones, an operation on tensors of two devices raises, and only copies go from one to another. Registering the
device changes what torch takes for the accelerator of the whole process, so that it is a process of its own:
`python -m tests.engine.pretend ROOM DIRECTORY...` splits each checkpoint over both and prints what it found as a line of JSON.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from app.checkpoints import placement
from app.checkpoints.loading import load_checkpoint
from app.engine.batch import Batch
from app.engine.reward_model import RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence

aten = torch.ops.aten
CPU = torch.device("cpu")
TREE = [[*range(5, 95)], [*range(5, 85), *range(200, 260)], [*range(5, 75), 9], [*range(100, 200)], [7]]


class Pretended(Tensor):
    """A tensor on a pretended device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls: type["Pretended"], held: Tensor, device: torch.device) -> "Pretended":  # noqa: PYI034 - static
        wrapper = Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=device
        )
        wrapper.held = held
        assert isinstance(wrapper, cls)
        return wrapper

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares another than it calls
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """`func` on the real tensors; the results are where it was asked to put them, else where its tensors are."""
    leaves = tree_leaves((args, kwargs))
    pretended = [leaf for leaf in leaves if isinstance(leaf, Pretended)]
    asked = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    if func is aten._fused_sdp_choice.default:
        return 0  # plain arithmetic
    if func is aten.copy_.default:
        place = args[0].device
    elif asked:
        place = torch.device("pretend", asked[0].index or 0) if asked[0].type == "pretend" else asked[0]
    else:
        place = common_device(func, leaves)

    def held(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return CPU if leaf.type == "pretend" else leaf
        return leaf.held if isinstance(leaf, Pretended) else leaf

    out = func(*tree_map(held, args), **tree_map(held, kwargs))
    same = {id(tensor.held): tensor for tensor in pretended if tensor.device == place}  # in-place operations

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return same[id(leaf)] if id(leaf) in same else Pretended(leaf, place)

    return tree_map(wrapped, out) if place.type == "pretend" else out


def common_device(func: Any, leaves: list[Any]) -> torch.device:
    """Scalars go with any tensor and indices may be on the CPU, as torch has it; else all must be on one device."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
    if func is aten.index.Tensor:
        tensors = [tensor for tensor in tensors if tensor.device.type != "cpu"] or tensors
    devices = {tensor.device for tensor in tensors} or {leaf.device for leaf in leaves if isinstance(leaf, Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"{func} got tensors on {sorted(map(str, devices))}")
    return next(iter(devices), CPU)


class Devices(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's __init_subclass__
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Literals(TorchFunctionMode):
    """`torch.tensor` fills memory by itself: on the CPU, then copied."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func is torch.tensor and options.get("device") is not None:
            device = options.pop("device")
            return func(*args, **options).to(device)
        return func(*args, **options)


def main(room: int, directories: list[str]) -> None:
    _setup_privateuseone_for_python_backend("pretend")
    torch.inference_mode = torch.no_grad  # type: ignore[misc, assignment]  # wrappers have no versions to leave out
    placement.free_memory = lambda first: {0: room, 1: room, "cpu": 0}  # noqa: ARG005 - as it is called
    for directory in directories:
        print(json.dumps(split(directory)))  # noqa: T201


def split(directory: str) -> dict[str, Any]:
    """The plan, places and scores of the checkpoint on both devices, and the scores of the whole one."""
    plain = load_checkpoint(directory, device="cpu")
    sequences = [TokenSequence.of(ids) for ids in TREE]
    expected = [RewardModel("safety", plain, max_batch_tokens=2048).reference_score(sequence) for sequence in sequences]
    with Devices(), Literals():  # type: ignore[no-untyped-call]
        model = RewardModel("safety", load_checkpoint(directory, device="split"), max_batch_tokens=2048)
        select_plan(model)
        scores = [[scored.score for scored in model.score(Batch.of(sequences))] for _ in range(2)]
        homes = {name: str(weight.device) for name, weight in model.net.named_parameters()}
    found = {"path": model.plan.path, "reason": model.plan.reason, "devices": model.devices, "homes": homes}
    return found | {"device": str(model.device), "scores": scores, "expected": expected}


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
