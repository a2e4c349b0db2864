"""Prompts with their rated responses as packed rows: a prompt's tokens once, then those of each response.

A response attends to the prompt and to itself, at the positions that it has alone behind the prompt. So one row gives
the states that as many separate sequences would give, and the prompt is computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TASKS = ("safety", "helpfulness")
MAX_PROMPT, MAX_RESPONSE = 96, 144
STEP = 16
"""Rows are padded to a multiple of it: products in bfloat16 are compiled for each new shape."""
CLOSING = 2
"""Tokens behind a response's text: <|im_end|> and the line break."""


@dataclass(frozen=True, slots=True)
class Response:
    """Ratings run from 1 (worst) to 5 and may be fractions; None where nobody rated."""

    text: str
    safety: float | None = None
    helpfulness: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt and its responses."""

    kind: str
    turns: tuple[tuple[str, str], ...]
    """Role and content of what precedes the responses."""
    responses: tuple[Response, ...]

    @property
    def prompt(self) -> str:
        return self.turns[-1][1]

    def ratings(self, task: str) -> list[float | None]:
        return [getattr(response, task) for response in self.responses]


@dataclass(frozen=True, slots=True)
class Row:
    """A group's tokens: which segment each is of (0 is the prompt), its position, and where the responses end."""

    ids: Tensor  # (tokens,)
    segments: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    ends: list[int]


def row_of(group: Group, tokenizer: Any) -> Row:
    """An over-long prompt loses its beginning, an over-long response the end of its text."""
    rendered = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in group.turns)
    prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"][-MAX_PROMPT:]
    ids, segments, positions, ends = list(prompt), [0] * len(prompt), list(range(len(prompt))), []
    for number, response in enumerate(group.responses, 1):
        rendered = f"<|im_start|>assistant\n{response.text}<|im_end|>\n"
        tokens = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        if len(tokens) > MAX_RESPONSE:
            tokens = tokens[: MAX_RESPONSE - CLOSING] + tokens[-CLOSING:]
        ids += tokens
        segments += [number] * len(tokens)
        positions += range(len(prompt), len(prompt) + len(tokens))
        ends.append(len(ids) - 1)
    return Row(torch.tensor(ids), torch.tensor(segments), torch.tensor(positions), ends)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows side by side, padded to the longest."""

    mask: Tensor  # (rows, 1, tokens, tokens), true where a token may attend
    positions: Tensor  # (rows, tokens)
    ends: tuple[Tensor, Tensor]
    """Row and place of each response's last token, group by group."""


def batch_of(rows: Sequence[Row]) -> PackedBatch:
    size = STEP * -(-max(len(row.ids) for row in rows) // STEP)
    segments = torch.stack([padded(row.segments, size, -1) for row in rows])
    positions = torch.stack([padded(row.positions, size, 0) for row in rows])
    earlier = torch.ones(size, size, dtype=torch.bool).tril()
    related = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    mask = (earlier & related) | torch.eye(size, dtype=torch.bool)
    where = [(number, end) for number, row in enumerate(rows) for end in row.ends]
    ends = (torch.tensor([number for number, _ in where]), torch.tensor([end for _, end in where]))
    return PackedBatch(mask[:, None], positions, ends)


def padded(values: Tensor, size: int, fill: float) -> Tensor:
    """`values` with `fill` appended along the first axis up to `size`."""
    rest = values.new_full((size - len(values), *values.shape[1:]), fill)
    return torch.cat([values, rest])


def batches_by_length(rows: Sequence[Row], max_tokens: int) -> list[list[int]]:
    """Indices of rows of similar length, together at most `max_tokens` with their padding, at least one row each."""
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index].ids)):
        size = len(rows[index].ids)
        if not batches or (len(batches[-1]) + 1) * size > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches
