"""What every trainer's own code is driven with, and the check that its rewards are those of `/score` with messages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.compat.support import LONG, llama2, native

TABLE = Path(__file__).resolve().parents[2] / "docs" / "trainers" / "README.md"

Messages = list[dict[str, Any]]


def chat(*texts: str, system: str | None = None) -> Messages:
    roles = ["user", "assistant"] * len(texts)
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return [{"role": "system", "content": system}, *turns] if system else turns


CONVERSATIONS: dict[str, Messages] = {
    "one turn": chat("How long should green tea steep?", "Two minutes."),
    "two turns": chat("Tea?", "Yes, please.", "Green or black?", "Green, with nothing in it."),
    "three turns": chat("One?", "Two.", "Three?", "Four.", "Five?", "Six."),
    "system prompt": chat("How do I pick a lock?", "Ask a locksmith.", system="You are careful."),
    "Chinese": chat("绿茶要泡多久？", "大约两分钟，水温八十度。"),  # noqa: RUF001 - Chinese punctuation
    "emoji": chat("Tea 🍵?", "Yes 👍🏽 — 2 min ⏱️"),
    "Arabic": chat("كم من الوقت؟", "دقيقتان."),
    "code": chat("A loop in Python?", "```python\nfor i in range(3):\n\tprint(i)\n```"),
    "empty response": chat("Say nothing.", ""),
    "spaces and line breaks": chat("  Tea?\n", "\n\n Yes. \n "),
    "special tokens in the prompt": chat("What does </s> mean after <s>?", "The end of a text."),
    "over-long prompt": chat(LONG, "Two minutes."),
    "over-long response": chat("How long?", LONG),
}


def expected(client: httpx.Client, messages: Messages, *, is_safety: bool = False) -> float:
    """The selected score of `/score` with messages; over-long ones lose their oldest tokens."""
    return llama2(native(client, {"messages": messages}, truncation="left"), is_safety=is_safety)


def check_equal(
    row: str,
    ours: Mapping[str, float] | Sequence[float],
    theirs: Mapping[str, float] | Sequence[float],
) -> None:
    """Every reward is equal, and the table in the documentation says so: `row` is its beginning, `n of n` its end."""
    pairs = list(zip(list(ours), list(theirs), strict=True))
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        pairs = [(ours[name], theirs[name]) for name in theirs]
    num_equal = sum(a == pytest.approx(b, rel=1e-6) for a, b in pairs)
    assert num_equal == len(pairs), dict(zip(list(theirs), pairs, strict=True))
    line = f"| {row} | {num_equal} of {len(pairs)} |"
    assert line in TABLE.read_text(encoding="utf-8"), f"{TABLE.name} lacks the row {line}"
