"""Adapters on one base: the base is read once, and a tensor that an adapter leaves alone is one tensor for all of them.

An adapter is merged into tensors of its own. The base's are never written to: a model that is loaded later, or a reload,
changes no score of the models that are there.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.checkpoints.adapters import find_adapter
from app.checkpoints.files import shape_of
from app.checkpoints.placement import Placement
from app.checkpoints.saved import Saved, read_saved, where
from app.checkpoints.weights import signatures_of
from app.settings import HUB_PREFIX

ON_CPU = Placement(torch.device("cpu"), torch.float32)
StorageKey = tuple[int, tuple[int, ...]]
"""Where a tensor's memory begins, and its shape. Unambiguous among tensors that are all alive."""


class KeptTensor:
    """A base's tensor in float32 on the CPU, read when it is first asked for and then kept."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self._lock = Lock()  # transformers reads in several threads
        self.tensor: Tensor | None = None

    def get_shape(self) -> tuple[int, ...]:
        return shape_of(self._stored)

    def __getitem__(self, index: Any) -> Tensor:
        with self._lock:
            if self.tensor is None:
                read: Tensor = self._stored[...]
                self.tensor = read.float() if read.is_floating_point() else read
        return self.tensor if index is ... else self.tensor[index]


class LateTensor:
    """A tensor that is known by its shape until somebody asks for it: `weights()` then has it under its name."""

    def __init__(self, name: str, shape: tuple[int, ...], weights: Callable[[], Mapping[str, Tensor]]) -> None:
        self._name, self._shape, self._weights = name, shape, weights

    def get_shape(self) -> tuple[int, ...]:
        return self._shape

    def __getitem__(self, index: Any) -> Tensor:
        return self._weights()[self._name][index]


@dataclass(slots=True)
class Base:
    """One base, and what was made of its tensors."""

    saved: Saved
    """Its weights are `KeptTensor`s."""
    placed: dict[tuple[Placement, StorageKey], Tensor] = field(default_factory=dict)
    """The base's tensors as the models of one placement have them."""

    def fresh(self) -> Saved:
        """As if it were read anew: loading a model changes its config and its tokenizer."""
        config, tokenizer = copy.deepcopy((self.saved.config, self.saved.tokenizer))
        return replace(self.saved, config=config, tokenizer=tokenizer)

    def unchanged(self, weights: Mapping[str, Any]) -> dict[str, Tensor]:
        """Those of a merged model's weights that are the base's own memory."""
        kept = {storage_key(each.tensor) for each in self.saved.weights.values() if each.tensor is not None}
        tensors = {name: stored[...] for name, stored in weights.items()}
        return {name: tensor for name, tensor in tensors.items() if storage_key(tensor) in kept}

    def find_placed(
        self, weights: Mapping[str, Any], placement: Placement, types: Mapping[str, torch.dtype]
    ) -> dict[str, Tensor]:
        """Those of a merged model's weights that are in their place already, for another model or as they were read.

        `types` are those that the weights are loaded as; int8 ones are made by loading alone.
        """
        own = {name: t for name, t in self.unchanged(weights).items() if types.get(name) != torch.int8}
        if placement == ON_CPU:
            return own
        found = {name: self.placed.get((placement, storage_key(tensor))) for name, tensor in own.items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def share(self, net: PreTrainedModel, weights: Mapping[str, Any], placement: Placement) -> None:
        """Gives a model that was loaded the parameters that others have already, and keeps its own for those that follow."""
        for name, tensor in self.unchanged(weights).items():
            key = placement, storage_key(tensor)
            path, _, attribute = name.rpartition(".")
            try:
                module = net.get_submodule(path)
                own = module.get_parameter(attribute)
            except AttributeError:  # another name, or several tensors in one: it keeps a copy of its own
                continue
            there = self.placed.setdefault(key, own.detach())
            if there.shape == own.shape and there.dtype == own.dtype and there.device == own.device:
                setattr(module, attribute, nn.Parameter(there, requires_grad=False))


def storage_key(tensor: Tensor) -> StorageKey:
    return tensor.data_ptr(), tuple(tensor.shape)


class SharedBases:
    """The bases of several adapters, each kept from the first of its adapters to the last."""

    def __init__(self, sources: Iterable[str] = ()) -> None:
        self._left = Counter(key for source in sources if (key := base_key(source)) is not None)
        self._bases: dict[str, Base] = {}

    def read(self, base: str, trust_remote_code: bool) -> Base | Saved:
        """The base; a `Base` where other adapters have used it or are going to."""
        key = key_of(base)
        self._left[key] -= 1
        known = self._bases.get(key)
        if known is not None and signatures_of(known.saved.files) == known.saved.signatures:
            if self._left[key] <= 0:
                del self._bases[key]
            return known
        saved = read_saved(base, trust_remote_code)
        if self._left[key] <= 0:
            return saved
        kept = {name: KeptTensor(stored) for name, stored in saved.weights.items()}
        self._bases[key] = Base(replace(saved, weights=kept))
        return self._bases[key]


def is_read(stored: Any) -> bool:
    """Whether it is a base's tensor that another adapter has read."""
    return isinstance(stored, KeptTensor) and stored.tensor is not None


def base_key(source: str) -> str | None:
    """Of the base of the adapter at `source`; None for what is no adapter, or a faulty one, which loading says more about."""
    with suppress(Exception):
        adapter = find_adapter(source, **where(source))
        return None if adapter is None else key_of(adapter.base)
    return None


def key_of(base: str) -> str:
    return base if base.startswith(HUB_PREFIX) else str(Path(base).resolve())


def weights_in_memory(net: nn.Module) -> list[Tensor]:
    """Each parameter once; of a quantized one the tensors that it is made of."""
    found: list[Tensor] = []
    for weight in net.parameters():
        parts = [value for value in vars(weight).values() if isinstance(value, Tensor)]
        found += parts or [weight]
    return found


def shared_bytes(net: nn.Module, others: Iterable[nn.Module]) -> int:
    """Bytes of the parameters of `net` that lie in the same memory as those of others."""
    theirs = {weight.untyped_storage().data_ptr() for other in others for weight in weights_in_memory(other)}
    return sum(weight.nbytes for weight in weights_in_memory(net) if weight.untyped_storage().data_ptr() in theirs)
