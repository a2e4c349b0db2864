"""From a caller's items to JSON, in requests of a size that the server takes.

Tensors and arrays are whatever has `.tolist()`: neither torch nor numpy is imported.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

from reward_client.errors import InvalidItemError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOGPROBS = ("policy_logprobs", "reference_logprobs")


@dataclass(frozen=True)
class Limits:
    """How much one request may hold; a caller's list that is larger becomes several."""

    max_items: int = 256
    max_body_bytes: int = 32_000_000


@dataclass(frozen=True)
class Chunk:
    """A run of encoded items, the first of them the caller's `first_item`."""

    first_item: int
    encoded: list[bytes]

    @property
    def num_items(self) -> int:
        return len(self.encoded)


def plain(value: Any) -> Any:
    """For json: a tensor or an array as lists, statistics as an object."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} does not fit into JSON")


def as_list(value: Any) -> list[Any]:
    listed = value.tolist() if hasattr(value, "tolist") else value
    return list(listed)


def encode_item(item: Mapping[str, Any], place: int) -> bytes:
    """One item. A logprob that is not finite becomes null, which the server takes where the mask does not count it."""
    row = dict(item)
    try:
        for name in LOGPROBS:
            if row.get(name) is not None:
                row[name] = [
                    value if value is not None and math.isfinite(value) else None for value in as_list(row[name])
                ]
        if row.get("mask") is not None:
            row["mask"] = [int(value) for value in as_list(row["mask"])]
        return json.dumps(row, default=plain, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise InvalidItemError(f"item {place} cannot be sent: {error}", place) from error


def encode_options(options: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(dict(options), default=plain, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidItemError(f"an option cannot be sent: {error}") from error


def chunk(items: Sequence[Mapping[str, Any]], limits: Limits) -> list[Chunk]:
    """The items in order, in as few requests as the limits allow; at least one, so that the server refuses no items."""
    chunks = [Chunk(0, [])]
    num_bytes = 0
    for place, item in enumerate(items):
        encoded = encode_item(item, place)
        is_full = chunks[-1].num_items >= limits.max_items or num_bytes + len(encoded) > limits.max_body_bytes
        if is_full and chunks[-1].num_items:
            chunks.append(Chunk(place, []))
            num_bytes = 0
        chunks[-1].encoded.append(encoded)
        num_bytes += len(encoded) + 1
    return chunks


def body(name: str, part: Chunk, options: Mapping[str, Any]) -> bytes:
    """{"items": [...], option: value, ...}"""
    rest = encode_options(options)[1:-1]
    return b'{"%s":[%s]%s%s}' % (name.encode(), b",".join(part.encoded), b"," if rest else b"", rest)
