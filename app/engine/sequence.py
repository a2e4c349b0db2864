"""The engine's unit of work: one tokenized conversation, and one model's result for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from app.engine.prefix_tree import TOKEN_BYTES, IntArray, decode_key, encode_key


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One tokenized conversation. `key` holds its token ids (see `prefix_tree`), at least one."""

    key: bytes
    truncated: bool = False
    token_types: bytes | None = None
    """Per token, its type (`token_type_ids`) for encoders that take types of a pair; None: all 0."""
    num_prompt_tokens: int = 0
    """How many tokens precede the response. Set only if the head or the text rules need it, else 0."""

    @classmethod
    def of(
        cls,
        token_ids: list[int],
        *,
        truncated: bool = False,
        token_types: Sequence[int] | None = None,
        num_prompt_tokens: int = 0,
    ) -> "TokenSequence":
        types = bytes(token_types) if token_types is not None and any(token_types) else None
        return cls(encode_key(token_ids), truncated, types, num_prompt_tokens)

    @property
    def num_tokens(self) -> int:
        return len(self.key) // TOKEN_BYTES

    @property
    def last_token_id(self) -> int:
        return int.from_bytes(self.key[-TOKEN_BYTES:])

    @property
    def token_ids(self) -> IntArray:
        return decode_key(self.key)


@dataclass(frozen=True, slots=True)
class Steps:
    """The scores of one sequence's steps by a process reward model."""

    scores: list[float]
    positions: list[int]  # of the tokens whose states the head read, counted from 0


@dataclass(frozen=True, slots=True)
class Scored:
    """One model's result for one sequence."""

    score: float
    token_scores: list[float] | None = None  # after every token, if the request asked for them
    num_computed_tokens: int = 0  # a shared token counts for the oldest sequence that has it
    num_cached_tokens: int = 0  # tokens of this sequence that were read from the prefix cache
    steps: Steps | None = None  # of a process reward model
    is_probability: bool = False  # the head outputs probabilities, so no sigmoid must be applied

    @property
    def is_finite(self) -> bool:
        """Whether the score, and the score of each step, is finite."""
        return isfinite(self.score) and (self.steps is None or all(map(isfinite, self.steps.scores)))
