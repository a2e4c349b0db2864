"""The first or last tokens of a text. A long text is tokenized only as far as needed.

A long text is cut into chunks where a cut does not change the tokens: after a word, if the characters around the cut give
the same tokens in one piece and in two. So for a limit of 512 tokens, 12 MB of text cost one chunk. Pre-tokenizers look only
at nearby characters, except inside runs of one kind (spaces, digits, letters), where we do not cut. A text without a place
to cut for a million characters is rejected.
"""

import re
from collections.abc import Iterator
from typing import Protocol

from app.engine.encoder import TextEncoder

LONG_CHARS = 32_768
"""Longer texts are cut; a tokenizer takes less than 50 ms for shorter ones."""
CHUNK_CHARS = 16_384
MAX_CHUNK_CHARS = 1 << 20
"""The longest chunk that is tokenized if there is no place to cut; about a second's work."""
WINDOW_CHARS = 384
"""How many characters on either side of a cut are compared."""
MAX_TRIES = 6
WORD_THEN_WORD = re.compile(r"(?<=\w)(?= \w)")
WORD_END = re.compile(r"(?<=\w)(?=\W)")


class UncuttableTextError(Exception):
    """The text is too long to be tokenized whole and has no place to cut it."""


class TextTokens(Protocol):
    def first(self, num_tokens: int) -> list[int]:
        """The first `num_tokens` tokens, or all if the text has fewer."""

    def last(self, num_tokens: int) -> list[int]:
        """The last `num_tokens` tokens, or all if the text has fewer."""


class WholeText:
    """The tokens of a text that has been tokenized."""

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids

    def first(self, num_tokens: int) -> list[int]:
        return self._token_ids[:num_tokens]

    def last(self, num_tokens: int) -> list[int]:
        return self._token_ids[max(len(self._token_ids) - num_tokens, 0) :]


class LongText:
    """A text that is tokenized chunk by chunk. `first` and `last` raise UncuttableTextError and ForeignCodeError."""

    def __init__(self, encoder: TextEncoder, text: str) -> None:
        self._encoder = encoder
        self._text = text
        self._front: list[int] = []
        self._front_end = 0  # how many characters `_front` covers
        self._back: list[list[int]] = []  # the tokens of the last chunks, the last chunk first
        self._num_back = 0
        self._back_start = len(text)

    @property
    def num_chars(self) -> int:
        return len(self._text)

    def first(self, num_tokens: int) -> list[int]:
        while len(self._front) < num_tokens and self._front_end < len(self._text):
            end, start = self._cut_after(self._front_end)
            self._front += self._encoder.encode_in_turn(self._text[self._front_end : end])
            self._front_end = start
        return self._front[:num_tokens]

    def last(self, num_tokens: int) -> list[int]:
        while self._num_back < num_tokens and self._back_start > 0:
            end, start = self._cut_before(self._back_start)
            self._back.append(self._encoder.encode_in_turn(self._text[start : self._back_start]))
            self._num_back += len(self._back[-1])
            self._back_start = end
        tokens = [token for chunk in reversed(self._back) for token in chunk]
        return tokens[max(len(tokens) - num_tokens, 0) :]

    def tail_from(self, position: int) -> int:
        """An index about a chunk before `position` from which the text can be tokenized separately; 0 if there is none."""
        cut = self._find_cut(position - CHUNK_CHARS, position - WINDOW_CHARS)
        return cut[1] if cut is not None else 0

    def _cut_after(self, position: int) -> tuple[int, int]:
        """The end of the chunk that starts at `position`, and the start of the next chunk."""
        for size in chunk_sizes():
            if position + 2 * size >= len(self._text):
                break
            if cut := self._find_cut(position + size, position + 2 * size):
                return cut
        self._check_chunk(len(self._text) - position)
        return len(self._text), len(self._text)

    def _cut_before(self, position: int) -> tuple[int, int]:
        """The start of the chunk that ends at `position`, preceded by the end of the chunk before it."""
        for size in chunk_sizes():
            if position <= 2 * size:
                break
            if cut := self._find_cut(position - 2 * size, position - size):
                return cut
        self._check_chunk(position)
        return 0, 0

    def _check_chunk(self, num_chars: int) -> None:
        if num_chars > MAX_CHUNK_CHARS:
            raise UncuttableTextError(
                f"{len(self._text)} characters, more than {MAX_CHUNK_CHARS} of them without the end of a word"
            )

    def _find_cut(self, low: int, high: int) -> tuple[int, int] | None:
        """A cut between `low` and `high`: the end of the left part and the start of the right one, which may skip a space."""
        for pattern in (WORD_THEN_WORD, WORD_END):
            position = max(low, 1)
            for _ in range(MAX_TRIES):
                match = pattern.search(self._text, position, min(high + 2, len(self._text)))
                if match is None:
                    break
                end = match.start()
                for start in (end, end + 1) if self._text[end] == " " else (end,):
                    if self._changes_nothing(end, start):
                        return end, start
                position = end + WINDOW_CHARS
        return None

    def _changes_nothing(self, end: int, start: int) -> bool:
        """Whether the characters around the cut have the same tokens in one piece and in two."""
        low, high = max(end - WINDOW_CHARS, 0), start + WINDOW_CHARS
        encode, text = self._encoder.encode, self._text
        return encode(text[low:end]) + encode(text[start:high]) == encode(text[low:high])


def chunk_sizes() -> Iterator[int]:
    size = CHUNK_CHARS
    while size < MAX_CHUNK_CHARS:
        yield size
        size *= 2
