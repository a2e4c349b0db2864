"""Shares a base between adapters: the base is read once, and adapters share the tensors that they do not change.

Merging copies the tensors that it changes. The base's are never written to, so loading another model, or a reload, changes no
score of the loaded models.
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
from app.checkpoints.saved import Saved, load_arguments, read_saved
from app.checkpoints.weights import signatures_of
from app.settings import HUB_PREFIX

ON_CPU = Placement(torch.device("cpu"), torch.float32)
StorageKey = tuple[int, tuple[int, ...]]
"""The address of a tensor's memory, and its shape. Unique among tensors that are alive at the same time."""


class CachedTensor:
    """A base's tensor in float32 on the CPU, read at first access and then kept."""

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


class LazyTensor:
    """A tensor of known shape that is read from `weights()`, by its name, at access."""

    def __init__(self, name: str, shape: tuple[int, ...], weights: Callable[[], Mapping[str, Tensor]]) -> None:
        self._name, self._shape, self._weights = name, shape, weights

    def get_shape(self) -> tuple[int, ...]:
        return self._shape

    def __getitem__(self, index: Any) -> Tensor:
        return self._weights()[self._name][index]


@dataclass(slots=True)
class Base:
    """A base, and its tensors as they were placed on devices."""

    saved: Saved
    """Its weights are `CachedTensor`s."""
    placed: dict[tuple[Placement, StorageKey], Tensor] = field(default_factory=dict)
    """The base's tensors on the device and in the dtype of each placement."""

    def fresh(self) -> Saved:
        """`saved` with copies of config and tokenizer, which loading a model changes."""
        config, tokenizer = copy.deepcopy((self.saved.config, self.saved.tokenizer))
        return replace(self.saved, config=config, tokenizer=tokenizer)

    def unchanged(self, weights: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weights of a merged model that share the base's memory."""
        kept = {storage_key(each.tensor) for each in self.saved.weights.values() if each.tensor is not None}
        tensors = {name: stored[...] for name, stored in weights.items()}
        return {name: tensor for name, tensor in tensors.items() if storage_key(tensor) in kept}

    def find_placed(
        self, weights: Mapping[str, Any], placement: Placement, types: Mapping[str, torch.dtype]
    ) -> dict[str, Tensor]:
        """The weights of a merged model that are already placed, for another model or because they stay on the CPU.

        `types` are the dtypes that the weights are loaded as; int8 weights are never shared, because loading creates them.
        """
        own = {name: t for name, t in self.unchanged(weights).items() if types.get(name) != torch.int8}
        if placement == ON_CPU:
            return own
        found = {name: self.placed.get((placement, storage_key(tensor))) for name, tensor in own.items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def share(self, net: PreTrainedModel, weights: Mapping[str, Any], placement: Placement) -> None:
        """Replaces a loaded model's parameters by those that other models already have, and keeps the rest for later models."""
        for name, tensor in self.unchanged(weights).items():
            key = placement, storage_key(tensor)
            path, _, attribute = name.rpartition(".")
            try:
                module = net.get_submodule(path)
                own = module.get_parameter(attribute)
            except AttributeError:  # renamed, or fused with other tensors: the model keeps its own copy
                continue
            shared = self.placed.setdefault(key, own.detach())
            if shared.shape == own.shape and shared.dtype == own.dtype and shared.device == own.device:
                setattr(module, attribute, nn.Parameter(shared, requires_grad=False))


def storage_key(tensor: Tensor) -> StorageKey:
    return tensor.data_ptr(), tuple(tensor.shape)


class SharedBases:
    """The bases of several adapters, each kept while there are adapters of it left to load."""

    def __init__(self, sources: Iterable[str] = ()) -> None:
        self._left = Counter(key for source in sources if (key := base_key(source)) is not None)
        self._bases: dict[str, Base] = {}

    def read(self, base: str, trust_remote_code: bool) -> Base | Saved:
        """The base, as a `Base` if other adapters have used it or will."""
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
        kept = {name: CachedTensor(stored) for name, stored in saved.weights.items()}
        self._bases[key] = Base(replace(saved, weights=kept))
        return self._bases[key]


def is_read(stored: Any) -> bool:
    """Whether it is a base's tensor that another adapter has already read."""
    return isinstance(stored, CachedTensor) and stored.tensor is not None


def base_key(source: str) -> str | None:
    """The key of the base of the adapter at `source`; None if it is no adapter or an invalid one, which loading reports."""
    with suppress(Exception):
        adapter = find_adapter(source, **load_arguments(source))
        return None if adapter is None else key_of(adapter.base)
    return None


def key_of(base: str) -> str:
    return base if base.startswith(HUB_PREFIX) else str(Path(base).resolve())


def weights_in_memory(net: nn.Module) -> list[Tensor]:
    """Each parameter once; for a quantized parameter, the tensors that it consists of."""
    found: list[Tensor] = []
    for weight in net.parameters():
        parts = [value for value in vars(weight).values() if isinstance(value, Tensor)]
        found += parts or [weight]
    return found


def shared_bytes(net: nn.Module, others: Iterable[nn.Module]) -> int:
    """Bytes of the parameters of `net` that share memory with parameters of `others`."""
    theirs = {address_of(weight) for other in others for weight in weights_in_memory(other)}
    return sum(weight.nbytes for weight in weights_in_memory(net) if address_of(weight) in theirs)


def address_of(weight: Tensor) -> int:
    """The same for two tensors in the same memory. oneDNN's tensors have no address; those that are shared are one object."""
    return id(weight) if weight.is_mkldnn else weight.untyped_storage().data_ptr()
