"""Presents an adapter and its base as one checkpoint, whose names and shapes are known before the base is read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
)

from app.checkpoints.adapter_files import head_rows
from app.checkpoints.adapters import Adapter, merged_weights
from app.checkpoints.building import build, head_of, net_of
from app.checkpoints.checks import check_labels, check_untrained
from app.checkpoints.declaration import Declaration
from app.checkpoints.files import head_files, shapes_of
from app.checkpoints.saved import Saved
from app.checkpoints.sharing import ON_CPU, Base, LazyTensor, SharedBases
from app.checkpoints.transformers_checks import check_config
from app.checkpoints.weights import signatures_of, weights_of
from app.errors import ModelRefusedError, one_line


@dataclass(frozen=True, slots=True)
class Merged:
    """An adapter's base with the adapter merged, in float32 in CPU memory."""

    saved: Saved
    """Its weights are computed by `merge`, or when the first of them is read."""
    base: Base | None
    """The base, if other models share its tensors."""
    merge: Callable[[], object]


def read_merged(
    source: str,
    adapter: Adapter,
    declarations: list[tuple[Declaration, str]],
    trust_remote_code: bool,
    bases: SharedBases,
) -> Merged:
    """The adapter's base with the adapter merged, as one checkpoint.

    The base may be a language model if the adapter brings the head that was trained with it (in its own file or in one beside
    it), or if the declared head reads the language model's logits.
    """
    found = bases.read(adapter.base, trust_remote_code)
    shared = found if isinstance(found, Base) else None
    base = found.fresh() if isinstance(found, Base) else found
    heads = head_files(str(adapter.directory), local_files_only=True)
    files = [*base.files, adapter.weights, *heads]
    signatures = [*base.signatures, *signatures_of([adapter.weights, *heads])]
    if heads or any(declaration.head is not None for declaration, _ in declarations):
        auto_class: Any = AutoModelForCausalLM
        new_head = False
    else:
        auto_class = AutoModelForSequenceClassification
        chooses_output = any(each.map is not None and each.map.chooses for each, _ in declarations)
        new_head = prepare_classifier(source, adapter, base, trust_remote_code, chooses_output=chooses_output)
    with torch.device("meta"):
        empty = net_of(base.config, trust_remote_code, auto_class)
    tokenizer = base.tokenizer
    if adapter.brings_tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(adapter.directory, local_files_only=True)
    if (
        base.config.get_text_config().pad_token_id is None
    ):  # trainers set it only for the run, and adapters do not store it
        base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    raw_config = {**base.raw_config, "architectures": [type(empty).__name__]}

    @cache
    def merge() -> dict[str, Tensor]:
        net = build(adapter.base, base, ON_CPU, trust_remote_code, new_head=new_head, auto_class=auto_class)
        try:
            return merged_weights(net, adapter, is_shared=shared is not None)
        except (RuntimeError, ValueError, UserWarning) as error:  # peft's, of an adapter that does not fit
            raise ModelRefusedError(
                f"{source} cannot be merged into its base {adapter.base} ({one_line(error)}); use an intact adapter and the base "
                "that it was trained on"
            ) from error

    lazy = {name: LazyTensor(name, tuple(tensor.shape), merge) for name, tensor in empty.state_dict().items()}
    saved = Saved(base.config, tokenizer, {**lazy, **weights_of(heads)}, files, signatures, raw_config)
    return Merged(saved, shared, merge)


def prepare_classifier(
    source: str, adapter: Adapter, base: Saved, trust_remote_code: bool, *, chooses_output: bool
) -> bool:
    """Sets the number of labels in the base's config to that of the classifier that the adapter was trained on.

    Returns whether the adapter brings the head. Raises ModelRefusedError if neither has a trained one.
    """
    num_labels = base.config.num_labels or 1
    base.config.num_labels = 1  # a language model's config has the default 2, which means nothing
    with torch.device("meta"):
        head, _ = head_of(net_of(base.config, trust_remote_code))
    rows = head_rows(shapes_of([adapter.weights]), head)
    if rows is None:
        base.config.num_labels = num_labels
        check_config(
            adapter.base,
            base.config,
            runs_own_code=runs_own_code(base.config, trust_remote_code),
            chooses_output=chooses_output,
        )
        check_untrained(adapter.base, base.files)
    else:
        base.config.num_labels = rows
        if not chooses_output:
            check_labels(source, rows)
    return rows is not None


def runs_own_code(config: PreTrainedConfig, trust_remote_code: bool) -> bool:
    """Whether the classifier's class is the checkpoint's own."""
    return trust_remote_code and "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})
