"""What the engine works on: one tokenized conversation, and what one model returns for it."""

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
    """Per token, the part of a pair that it belongs to, for encoders that are told; None: all 0."""
    num_prompt_tokens: int = 0
    """How many tokens stand before the response. Known only where a head or the text rules need it; 0 elsewhere."""

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
    """The scores that a process reward model gives the steps of one sequence."""

    scores: list[float]
    positions: list[int]  # of the tokens whose states were read, counted from 0


@dataclass(frozen=True, slots=True)
class Scored:
    """One model's result for one sequence."""

    score: float
    token_scores: list[float] | None = None  # after every token, if the request asked for them
    num_computed_tokens: int = 0  # that the model computed for this sequence; shared ones count for the oldest
    num_cached_tokens: int = 0  # of this sequence, whose keys and values an earlier batch left in the prefix cache
    steps: Steps | None = None  # where the model reads a score at every step
    is_probability: bool = False  # whether the scores are probabilities already

    @property
    def is_finite(self) -> bool:
        """Whether every number of it is."""
        return isfinite(self.score) and (self.steps is None or all(map(isfinite, self.steps.scores)))
