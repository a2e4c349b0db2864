"""What a model's config says of attention that depends on length: windows, chunks, rotary encodings. Knows only configs."""

from collections.abc import Iterator
from typing import Any

SLIDING, CHUNKED = "sliding_attention", "chunked_attention"


def begins_at(config: Any) -> list[int]:
    """The lengths in tokens up to which the config's limits of attention change nothing, ascending."""
    limits = {layer_limit(config, kind) for kind in (SLIDING, CHUNKED)}
    return sorted(limit for limit in limits if limit is not None)


def expected_windows(config: Any, num_calls: int) -> list[int | None]:
    """Per call of the attention function in a forward, the limit that the config asks for; None: none.

    A config that names the kind of each layer says which calls are limited, where it names as many as there are calls; else
    a limit is for every layer.
    """
    kinds = [
        kind for kind in getattr(config, "layer_types", None) or () if "attention" in kind and "linear" not in kind
    ]
    if len(kinds) == num_calls:
        return [layer_limit(config, kind) for kind in kinds]
    return [layer_limit(config, CHUNKED) or layer_limit(config, SLIDING)] * num_calls


def layer_limit(config: Any, kind: str) -> int | None:
    """How many tokens back a layer of this kind attends to, its own included; None where nothing limits it."""
    if kind == CHUNKED:
        return as_length(getattr(config, "attention_chunk_size", None))
    if kind == SLIDING and getattr(config, "use_sliding_window", True):
        return as_length(getattr(config, "sliding_window", None))
    return None


def as_length(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def rope_types(config: Any) -> Iterator[str]:
    """The kinds of rotary encoding that a config names, one for all layers or one per kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for each in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:
        if "rope_type" in each:
            yield each["rope_type"]
