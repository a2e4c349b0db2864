"""Groups of responses as packed rows: a prompt's tokens once, then those of each response.

A response attends to the prompt and to itself, at the positions that it has alone behind the prompt. So one row gives
the states that as many separate sequences would give, and the prompt is computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEP = 16
"""Rows are padded to a multiple of it: products in bfloat16 are compiled for each new shape."""


@dataclass(frozen=True, slots=True)
class Row:
    """A group's tokens: which segment each is of (0 is the prompt), its position, and where the responses end."""

    ids: Tensor  # (tokens,)
    segments: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    ends: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def sequences(self) -> list[Tensor]:
        """The tokens of each response behind the prompt, as a forward pass without packing reads them."""
        prompt = self.ids[self.segments == 0]
        return [torch.cat([prompt, self.ids[self.segments == number]]) for number in range(1, len(self.ends) + 1)]


def pack(prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> Row:
    """The row of a prompt's token ids, none or more, and of the responses' that follow it, at least one each."""
    ids, segments, positions, ends = list(prompt), [0] * len(prompt), list(range(len(prompt))), []
    for number, tokens in enumerate(responses, 1):
        ids += tokens
        segments += [number] * len(tokens)
        positions += range(len(prompt), len(prompt) + len(tokens))
        ends.append(len(ids) - 1)
    return Row(torch.tensor(ids), torch.tensor(segments), torch.tensor(positions), ends)


def pack_sequences(sequences: Sequence[Sequence[int]]) -> Row:
    """The row of whole sequences: the tokens that all begin with are its prompt. Each keeps its last token for itself."""
    shortest = min(map(len, sequences))
    num_shared = next(
        (i for i in range(shortest - 1) if len({sequence[i] for sequence in sequences}) > 1), shortest - 1
    )
    return pack(sequences[0][:num_shared], [sequence[num_shared:] for sequence in sequences])


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows side by side, padded to the longest."""

    ids: Tensor  # (rows, tokens)
    mask: Tensor  # (rows, 1, tokens, tokens), true where a token may attend
    positions: Tensor  # (rows, tokens)
    ends: tuple[Tensor, Tensor]
    """Row and place of each response's last token, group by group."""

    @property
    def num_tokens(self) -> int:
        """Of each row, padding included."""
        return self.ids.shape[1]


def batch_of(rows: Sequence[Row], device: torch.device) -> PackedBatch:
    size = STEP * -(-max(row.num_tokens for row in rows) // STEP)
    ids = torch.stack([padded(row.ids, size, 0) for row in rows])
    segments = torch.stack([padded(row.segments, size, -1) for row in rows])
    positions = torch.stack([padded(row.positions, size, 0) for row in rows])
    earlier = torch.ones(size, size, dtype=torch.bool).tril()
    related = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    mask = (earlier & related) | torch.eye(size, dtype=torch.bool)
    where = [(number, end) for number, row in enumerate(rows) for end in row.ends]
    ends = (torch.tensor([number for number, _ in where]), torch.tensor([end for _, end in where]))
    return PackedBatch(
        ids.to(device), mask[:, None].to(device), positions.to(device), (ends[0].to(device), ends[1].to(device))
    )


def padded(values: Tensor, size: int, fill: float) -> Tensor:
    """`values` with `fill` appended along the first axis up to `size`."""
    rest = values.new_full((size - len(values), *values.shape[1:]), fill)
    return torch.cat([values, rest])


def batches_by_length(rows: Sequence[Row], max_tokens: int) -> list[list[int]]:
    """Indices of rows of similar length, together at most `max_tokens` with their padding, at least one row each."""
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda index: rows[index].num_tokens):
        size = rows[index].num_tokens
        if not batches or (len(batches[-1]) + 1) * size > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches
