"""The engine's currency: one tokenized conversation to be scored, and what comes back for it."""

from dataclasses import dataclass

from app.engine.prefix_tree import TOKEN_BYTES, IntArray, decode_key, encode_key


@dataclass(frozen=True, slots=True)
class Sequence:
    """One tokenized conversation. `key` holds its token ids (see `prefix_tree`), at least one."""

    key: bytes
    truncated: bool = False

    @classmethod
    def of(cls, token_ids: list[int], *, truncated: bool = False) -> "Sequence":
        return cls(encode_key(token_ids), truncated)

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
class Scored:
    """What one model says of one sequence: the head's output, and where asked for, that after every token."""

    score: float
    token_scores: list[float] | None = None
