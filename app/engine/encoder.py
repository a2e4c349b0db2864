"""The service's wrapper of a tokenizer: texts to token ids, and the special tokens that the tokenizer adds around them."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from app.engine.foreign_code import ForeignCodeError, foreign_code


@dataclass(frozen=True, slots=True)
class PairFrame:
    """The special tokens before, between and after the two texts of a pair, and every part's token types.

    The order is: leading, first text, middle, second text, trailing.
    """

    leading: tuple[int, ...]
    middle: tuple[int, ...]
    trailing: tuple[int, ...]
    leading_types: tuple[int, ...]
    middle_types: tuple[int, ...]
    trailing_types: tuple[int, ...]
    first_type: int
    second_type: int

    @property
    def num_tokens(self) -> int:
        return len(self.leading) + len(self.middle) + len(self.trailing)


LARGE_CHARS = 131_072
"""A tokenizer may take more than 100 ms for a longer text."""


class FairLock:
    """A lock that serves threads first come, first served, so that a thread that reacquires it cannot starve the others.

    A release wakes only the next thread: a chunk takes 4 ms, and waking all waiting threads after each one would keep the
    GIL busy.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def __enter__(self) -> None:
        turn = threading.Lock()
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()  # until the thread before releases it

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()  # passes the lock on to the next thread
            else:
                self._is_taken = False


class TextEncoder:
    """Token ids without special tokens. Every method may be called from any thread."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._lock, self._large_lock = FairLock(), FairLock()
        self._python_tokenizer = threading.Lock()  # tokenizers written in Python keep state during a call
        if self._backend is not None:  # the file may enable both; transformers' own call disables them too
            self._backend.no_truncation()
            self._backend.no_padding()
        self.has_token_types = "token_type_ids" in tokenizer.model_input_names
        bare, full = self.encode("a"), self._with_special_tokens("a")[0]
        start = find(full, bare)
        self.leading, self.trailing = tuple(full[:start]), tuple(full[start + len(bare) :])

    def encode(self, text: str) -> list[int]:
        """Raises ForeignCodeError."""
        with foreign_code():
            return self._encode([text])[0]

    def encode_in_turn(self, text: str) -> list[int]:
        """`encode` for a chunk of a long text: one chunk at a time, so that long texts share one core fairly.

        Chunks over LARGE_CHARS have a lock of their own, so they delay only each other.
        """
        with self._lock if len(text) <= LARGE_CHARS else self._large_lock:
            return self.encode(text)

    def encode_batch(self, texts: list[str]) -> Sequence[list[int] | ForeignCodeError]:
        """Encodes all texts in one call. If that fails, encodes them one by one, so that only the faulty ones get an error."""
        try:
            with foreign_code():
                return self._encode(texts)
        except ForeignCodeError as error:
            return [error] if len(texts) == 1 else [self.encode_batch([text])[0] for text in texts]

    def pair_frame(self) -> PairFrame | None:
        """The tokenizer's frame of a pair; None if its encoded pair does not contain both texts' own tokens."""
        ids, types = self._with_special_tokens("a", "b")
        first, second = self.encode("a"), self.encode("b")
        start = find(ids, first)
        middle = start + len(first)
        start_second = middle + find(ids[middle:], second)
        end = start_second + len(second)
        if ids[start:middle] != first or ids[start_second:end] != second:
            return None
        return PairFrame(
            leading=tuple(ids[:start]),
            middle=tuple(ids[middle:start_second]),
            trailing=tuple(ids[end:]),
            leading_types=tuple(types[:start]),
            middle_types=tuple(types[middle:start_second]),
            trailing_types=tuple(types[end:]),
            first_type=types[start],
            second_type=types[start_second],
        )

    def token_types(self, token_ids: Sequence[int], frame: PairFrame) -> list[int]:
        """The token types of given ids. If they are no pair in this frame, all have the first text's type.

        The first text ends at the first `middle` after `leading`.
        """
        ids = tuple(token_ids)
        start, stop = len(frame.leading), len(ids) - len(frame.trailing)
        is_framed = ids[:start] == frame.leading and ids[stop:] == frame.trailing
        middle = start + find(ids[start:stop], frame.middle)
        second = middle + len(frame.middle)
        if not (is_framed and frame.middle and ids[middle:second] == frame.middle and second < stop):
            return [frame.first_type] * len(ids)
        return [
            *frame.leading_types,
            *[frame.first_type] * (middle - start),
            *frame.middle_types,
            *[frame.second_type] * (stop - second),
            *frame.trailing_types,
        ]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if self._backend is not None:
            return [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]  # releases the GIL
        with self._python_tokenizer:
            return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def _with_special_tokens(self, *texts: str) -> tuple[list[int], list[int]]:
        """Token ids and types of a text or a pair, as the tokenizer's own call returns them."""
        if self._backend is not None:
            encoding = self._backend.encode(*texts)
            return encoding.ids, encoding.type_ids
        encoded = self.tokenizer(*texts, return_token_type_ids=True)
        return encoded["input_ids"], encoded["token_type_ids"]


def find(ids: Sequence[int], part: Sequence[int]) -> int:
    """The index where `part` first occurs in `ids`; 0 if it does not occur."""
    return next((i for i in range(len(ids) - len(part) + 1) if ids[i : i + len(part)] == part), 0)
