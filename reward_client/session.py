"""Which requests belong together: a name for a prompt, so that a router can send all responses to it to one replica.

A replica computes a prompt that it sees several times once. The name is a hash, sent as a header: whoever routes needs
to read neither the body nor the prompt.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

HEADER = "x-session-id"
"""What Ray Serve reads. Envoy, nginx and HAProxy hash on any header that they are told."""

LAST_TURN = re.compile(
    r"<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|<\|assistant\|>"
    r"|<start_of_turn>model|\[/INST\]|\nAssistant:"
)
"""Where an answer begins in a text that a common chat template has rendered."""


def session_of(item: Mapping[str, Any]) -> str | None:
    """Equal for all responses to one prompt, in whatever form they are sent; None where nothing says where a prompt ends."""
    turns = prompt_of(item)
    return hashlib.sha256(json.dumps(turns, default=repr).encode()).hexdigest()[:32] if turns else None


def prompt_of(item: Mapping[str, Any]) -> list[list[Any]]:
    """The turns before the response as [role, content]; a prompt is the user's turn."""
    prompt = item.get("prompt")
    conversation = item.get("messages") or item.get("chosen_messages")
    if isinstance(prompt, str):
        return [["user", prompt]]
    if is_list(prompt):
        return turns_of(prompt)
    if is_list(conversation):
        return turns_of(conversation[:-1])
    text = str(item.get("text") or item.get("rendered") or "")
    starts = [match.end() for match in LAST_TURN.finditer(text)]
    return [["text", text[: starts[-1]]]] if starts else []


def turns_of(messages: Sequence[Any]) -> list[list[Any]]:
    return [[turn.get("role"), turn.get("content")] for turn in messages if isinstance(turn, Mapping)]


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)
