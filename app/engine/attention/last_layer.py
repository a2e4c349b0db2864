"""Lets a decoder's last layer compute only the rows that the head reads."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from app.engine.attention.cpu import BlockAttention, Queries


class KeysCapturedError(Exception):
    """Control flow: ends a layer's first call once its keys and values are known."""


class LastLayerRows:
    """The state of a last layer that computes keys and values for the whole row, and everything else for wanted rows only.

    Attention cannot return fewer rows than it was given, so the layer is called twice. The first call stops inside the
    attention function, which keeps the keys and values. The second call runs on the wanted rows and attends to them.
    """

    def __init__(self, wanted: list[Queries], num_rows: int) -> None:
        self.num_rows = num_rows
        self.attention = BlockAttention(lambda: wanted)
        self.keys_and_values: tuple[Tensor, Tensor] | None = None


@contextmanager
def restrict_to_rows(layer: nn.Module, last_rows: LastLayerRows, rows: Tensor, num_rows: int) -> Iterator[None]:
    """Within the context, `layer` returns only `rows` of its `num_rows` inputs."""
    own = vars(layer).get("forward")  # accelerate's hook, if the model is split across devices
    forward = layer.forward

    def forward_rows(*args: Any, **options: Any) -> Any:
        with suppress(KeysCapturedError):
            forward(*args, **options, last_rows=last_rows)
        return forward(*pick(args, rows, num_rows), **pick(options, rows, num_rows), last_rows=last_rows)

    layer.forward = forward_rows
    try:
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own


def pick(value: Any, rows: Tensor, num_rows: int) -> Any:
    """The rows of every tensor that has `num_rows` of them, in tuples, lists and dicts too."""
    if isinstance(value, Tensor):
        is_by_row = value.ndim > 1 and value.shape[1] == num_rows
        return value.index_select(1, rows.to(value.device)) if is_by_row else value
    if type(value) in {tuple, list}:
        return type(value)(pick(each, rows, num_rows) for each in value)
    return {name: pick(each, rows, num_rows) for name, each in value.items()} if type(value) is dict else value
