"""Config options whose effect depends on a text's length: sliding windows, chunks, rotary encodings. Knows only configs."""

from collections.abc import Iterator
from typing import Any

SLIDING, CHUNKED = "sliding_attention", "chunked_attention"


def begins_at(config: Any) -> list[int]:
    """The config's limits of attention in tokens, ascending. A limit has no effect on texts up to its own length."""
    limits = {layer_limit(config, kind) for kind in (SLIDING, CHUNKED)}
    return sorted(limit for limit in limits if limit is not None)


def expected_windows(config: Any, num_calls: int) -> list[int | None]:
    """Per call of the attention function in a forward pass, the config's limit in tokens; None: no limit.

    If the config lists a kind for as many layers as there are calls, each call has its kind's limit. Otherwise a limit
    applies to every call.
    """
    kinds = [
        kind for kind in getattr(config, "layer_types", None) or () if "attention" in kind and "linear" not in kind
    ]
    if len(kinds) == num_calls:
        return [layer_limit(config, kind) for kind in kinds]
    return [layer_limit(config, CHUNKED) or layer_limit(config, SLIDING)] * num_calls


def layer_limit(config: Any, kind: str) -> int | None:
    """How many tokens a layer of this kind attends to, counted back from the query's own; None if unlimited."""
    if kind == CHUNKED:
        return as_length(getattr(config, "attention_chunk_size", None))
    if kind == SLIDING and getattr(config, "use_sliding_window", True):
        return as_length(getattr(config, "sliding_window", None))
    return None


def as_length(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def rope_types(config: Any) -> Iterator[str]:
    """The config's types of rotary encoding: one for all layers, or one per kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for each in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:
        if "rope_type" in each:
            yield each["rope_type"]
