"""Encodes the caller's items as JSON, split into requests that the server accepts.

Anything with `.tolist()` counts as a tensor or array, so torch and numpy are not imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from reward_client.errors import ConfigurationError, InvalidItemError

LOGPROBS = ("policy_logprobs", "reference_logprobs")
FORMS = {
    "item": '{"prompt": ..., "response": ...}, {"messages": [...]}, {"text": ...}, {"rendered": ...} or {"input_ids": [...]}',
    "pair": '{"prompt": ..., "chosen": ..., "rejected": ...}',
}


@dataclass(frozen=True)
class Limits:
    """The maximum size of one request; a longer list is sent in several requests."""

    max_items: int = 256
    max_body_bytes: int = 32_000_000

    def __post_init__(self) -> None:
        for name, count in (("max_items", self.max_items), ("max_body_bytes", self.max_body_bytes)):
            if count < 1:
                raise ConfigurationError(f"{name} is {count}; pass at least 1")


@dataclass(frozen=True)
class Chunk:
    """Consecutive items, encoded; `first_item` is the index of the first in the caller's list."""

    first_item: int
    encoded: list[bytes]

    @property
    def num_items(self) -> int:
        return len(self.encoded)


def check_items(items: object, kind: str) -> list[Mapping[str, Any]]:
    """The caller's items (or pairs) as a list; raises InvalidItemError for anything but a list of mappings."""
    expected = f"pass a list of {kind}s, each {FORMS[kind]}"
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise InvalidItemError(f"{kind}s is {items!r:.80}, a {type(items).__name__}; {expected}")
    rows = list(items)
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InvalidItemError(f"{kind}s[{index}] is {row!r:.80}, a {type(row).__name__}; {expected}", index)
    return rows


def plain(value: Any) -> Any:
    """For `json.dumps`: tensors and arrays become lists, statistics become an object."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def as_list(value: Any) -> list[Any]:
    listed = value.tolist() if hasattr(value, "tolist") else value
    return list(listed)


def encode_item(item: Mapping[str, Any], list_name: str, index: int) -> bytes:
    """One item of the list `list_name` as JSON; raises InvalidItemError, which names it by `index`."""
    row = dict(item)
    try:
        for name in LOGPROBS:
            if row.get(name) is not None:
                row[name] = [finite_or_none(value) for value in as_list(row[name])]
        if row.get("mask") is not None:
            row["mask"] = [zero_or_one(value, token) for token, value in enumerate(as_list(row["mask"]))]
        return to_json(row)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise InvalidItemError(f"{list_name}[{index}] cannot be sent: {error}", index) from error


def finite_or_none(value: float | None) -> float | None:
    """A logprob that is not finite becomes null; the server accepts null where the mask excludes the token."""
    return value if value is not None and math.isfinite(value) else None


def zero_or_one(value: Any, token: int) -> int:
    """A mask's value, a number or a boolean; a fraction is invalid and must not be rounded to 0."""
    number = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(number, int | float) or number not in {0, 1}:
        raise ValueError(f"mask[{token}] is {number!r:.40}; a mask holds 1 for a counted token and 0 for any other")
    return int(number)


def to_json(value: dict[str, Any]) -> bytes:
    """Raises TypeError, ValueError (also for a lone surrogate, which is not valid UTF-8), RecursionError or OverflowError."""
    return json.dumps(value, default=plain, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def encode_options(options: Mapping[str, Any]) -> bytes:
    try:
        return to_json(dict(options))
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise InvalidItemError(f"an option cannot be sent: {error}") from error


def chunk(items: Sequence[Mapping[str, Any]], limits: Limits, list_name: str = "items") -> list[Chunk]:
    """The items (or pairs, as `list_name` says) in order, in as few requests as the limits allow. No items are one empty request, which the server rejects."""
    chunks = [Chunk(0, [])]
    num_bytes = 0
    for index, item in enumerate(items):
        encoded = encode_item(item, list_name, index)
        is_full = chunks[-1].num_items >= limits.max_items or num_bytes + len(encoded) > limits.max_body_bytes
        if is_full and chunks[-1].num_items:
            chunks.append(Chunk(index, []))
            num_bytes = 0
        chunks[-1].encoded.append(encoded)
        num_bytes += len(encoded) + 1
    return chunks


def body(name: str, part: Chunk, options: Mapping[str, Any]) -> bytes:
    """{"items": [...], option: value, ...}"""
    rest = encode_options(options)[1:-1]
    return b'{"%s":[%s]%s%s}' % (name.encode(), b",".join(part.encoded), b"," if rest else b"", rest)
