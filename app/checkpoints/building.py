"""Builds modules and reads a checkpoint's weights into them, on the device and in the dtypes that they are served in."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from app.checkpoints.checks import check_explained, check_finite, check_mismatched, check_missing
from app.checkpoints.files import shape_of
from app.checkpoints.parts import TrunkParts
from app.checkpoints.placement import Placement, device_map_of
from app.checkpoints.quantization import int8_config, weight_types
from app.checkpoints.saved import Saved
from app.checkpoints.sharing import Base, is_read
from app.checkpoints.weights import FiniteWeights


def net_of(
    config: PreTrainedConfig, trust_remote_code: bool, auto_class: Any = AutoModelForSequenceClassification
) -> PreTrainedModel:
    net: PreTrainedModel = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    return net


def build(
    source: str,
    saved: Saved,
    placement: Placement,
    trust_remote_code: bool,
    *,
    new_head: bool = False,
    auto_class: Any = AutoModelForSequenceClassification,
    base: Base | None = None,
) -> PreTrainedModel:
    """The model with the saved weights, read one by one into their place after checking that the memory suffices.

    With `new_head`, the weights may lack the head, which is then random. `base`: the base whose tensors models share.
    """
    is_classifier = auto_class is AutoModelForSequenceClassification
    with torch.device("meta"):  # for its shapes and its class
        empty = net_of(saved.config, trust_remote_code, auto_class)
    head = head_of(empty)[0] if is_classifier else None
    unexpected = check_tensors(source, empty, saved.weights, may_miss=f"{head}." if new_head else None)
    trunk = f"{empty.base_model_prefix}."
    check_explained(
        source,  # besides a new head, the base may have a head of its own
        {name for name in unexpected if not new_head or name.startswith(trunk)},
        saved.weights,
    )
    net = read_into(source, empty, saved.weights, placement, head, base=base)
    if is_classifier and not new_head:
        keep_head_exact(net, saved.weights)
    return on_device(net, saved.weights, placement, base)


def load_trunk(source: str, parts: TrunkParts, placement: Placement, base: Base | None = None) -> PreTrainedModel:
    """The trunk with the weights that the layout found for it. `base`: the base whose tensors models share."""
    weights = parts.layout.trunk
    check_explained(source, check_tensors(source, parts.empty, weights), weights)
    net = read_into(source, parts.empty, weights, placement, None, base=base)
    return on_device(net, weights, placement, base)


def check_tensors(
    source: str, empty: PreTrainedModel, weights: Mapping[str, Any], *, may_miss: str | None = None
) -> set[str]:
    """The names of the tensors that a model like `empty`, which is on `meta`, has no place for.

    Reads no weights: transformers loads their shapes alone, on `meta`, under the names that it gives them. Raises ModelRefusedError
    for a tensor of another shape than the model's, and for one that is missing, unless its name begins with `may_miss`.
    """
    shapes = {name: torch.empty(shape_of(stored), device="meta") for name, stored in weights.items()}
    architecture: Any = type(empty)
    _, loading = architecture.from_pretrained(
        None,
        config=empty.config,
        state_dict=shapes,
        dtype=torch.float32,
        device_map={"": "meta"},
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, in our words
    )
    check_missing(source, {name for name in loading["missing_keys"] if not (may_miss and name.startswith(may_miss))})
    check_mismatched(source, loading["mismatched_keys"])
    return set(loading["unexpected_keys"])


def read_into(
    source: str,
    empty: PreTrainedModel,
    weights: Mapping[str, Any],
    placement: Placement,
    head: str | None,
    *,
    base: Base | None = None,
) -> PreTrainedModel:
    """A model like `empty`, which is on `meta`, with the weights, whose names and shapes must match."""
    types = weight_types(empty, head, placement.dtype, int8=placement.int8)
    placed = base.find_placed(weights, placement, types) if base is not None else {}
    read = {name for name, stored in weights.items() if is_read(stored)}
    device_map = device_map_of(source, placement, empty, head, types, {*placed, *read})
    finite = FiniteWeights(placement.dtype)
    architecture: Any = type(empty)
    net: PreTrainedModel = architecture.from_pretrained(
        None,
        config=empty.config,
        state_dict=finite.watch(weights) | placed,
        dtype=placement.dtype,
        device_map=device_map,
        quantization_config=int8_config(head) if placement.int8 else None,
    )
    check_finite(source, finite.non_finite)
    return net


def on_device(
    net: PreTrainedModel, weights: Mapping[str, Any], placement: Placement, base: Base | None
) -> PreTrainedModel:
    loaded: nn.Module = net
    if not hasattr(net, "hf_device_map"):
        loaded.to(placement.device)
    loaded.requires_grad_(requires_grad=False).eval()
    if base is not None:
        base.share(net, weights, placement)
    return net


def head_of(net: PreTrainedModel) -> tuple[str, nn.Linear]:
    """The head and its name: the last linear layer with an output per label (`score`, `classifier`, `classifier.out_proj`)."""
    num_labels = net.config.num_labels
    linears = (
        (name, m) for name, m in net.named_modules() if isinstance(m, nn.Linear) and m.out_features == num_labels
    )
    *_, last = linears
    return last


def keep_head_exact(net: PreTrainedModel, weights: dict[str, Any]) -> None:
    """Reads the head from the file as float32, because the trunk's dtype may have rounded it."""
    name, head = head_of(net)
    if head.weight.dtype == torch.float32:
        return
    head.float()
    head.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))
    for key, parameter in head.named_parameters():
        if (saved := weights.get(f"{name}.{key}")) is not None:
            parameter.data.copy_(saved[...])
