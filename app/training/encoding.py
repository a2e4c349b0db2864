"""Tokenizes pairs as the service does, and splits them into training and held-out examples.

TRL's own preprocessing would append EOS, silently drop pairs that are too long, and cannot truncate.
"""

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol, TypeVar

from app.api.pairs import margin_of, pair_to_inputs
from app.engine.sequence import TokenSequence
from app.engine.tokenization import Tokenization
from app.errors import InvalidInputError, TooLongError, TrainingError
from app.rewards.margins import MarginScheme
from app.training.options import TooLong
from app.training.pairs import PairFile, PairLine

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Example:
    line: PairLine
    chosen: TokenSequence
    rejected: TokenSequence
    margin: float


@dataclass(slots=True)
class Examples:
    """The encoded pairs of a file, and the dropped lines by reason. A line is counted once, for its first problem."""

    kept: list[Example] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)
    made_equal: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    end_in_pad: int = 0

    def notes(self, max_length: int, pad_token: str) -> list[str]:
        """One sentence per reason for which pairs were dropped or changed."""
        named = (
            (self.too_long, f"pairs dropped: over {max_length} tokens"),
            (self.made_equal, f"pairs dropped: both sides are the same once cut to {max_length} tokens"),
            (self.truncated, f"pairs truncated to {max_length} tokens"),
        )
        return [*notes_on_lines(named), *note_on_padding(self.end_in_pad, "pairs", pad_token)]


def notes_on_lines(named: Iterable[tuple[list[int], str]]) -> list[str]:
    """One sentence for each list of line numbers that is not empty, which says what happened to them."""
    return [f"{len(lines)} {what} (line {first_of(lines)})" for lines, what in named if lines]


def note_on_padding(count: int, what: str, pad_token: str) -> list[str]:
    """That so many end in the pad token; none if none do."""
    note = (
        f"{count} {what} end in {pad_token}, which is the pad token: they are scored at the token before "
        "it, in training as in the service"
    )
    return [note] if count else []


def first_of(lines: list[int]) -> str:
    return ", ".join(map(str, lines[:SHOWN])) + (", ..." if len(lines) > SHOWN else "")


def encode(
    pairs: PairFile,
    tokenization: Tokenization,
    pad_token_id: int,
    scheme: MarginScheme,
    too_long: TooLong,
    progress: Callable[[], object],
) -> Examples:
    """Raises InvalidInputError that names the line if a pair cannot be tokenized, is too long, or has two equal sides."""
    examples = Examples()
    for line in pairs.lines:
        progress()
        location = f"{pairs.name} line {line.number}"
        if line.is_same:
            raise InvalidInputError(f"{location}: chosen and rejected are the same; take the pair out")
        inputs = list(pair_to_inputs(line.pair, line.number, f"{location}: "))
        outcomes = tokenization.encode(inputs, "error" if too_long == "drop" else too_long)
        error = next((outcome for outcome in outcomes if isinstance(outcome, InvalidInputError)), None)
        if isinstance(error, TooLongError) and too_long != "error":  # "prompt": the response leaves no room
            examples.too_long.append(line.number)
            continue
        if error is not None:
            raise error
        chosen, rejected = (outcome for outcome in outcomes if isinstance(outcome, TokenSequence))
        if chosen.key == rejected.key:
            if not (chosen.truncated or rejected.truncated):
                raise InvalidInputError(f"{location}: chosen and rejected have the same tokens; take the pair out")
            examples.made_equal.append(line.number)
            continue
        if chosen.truncated or rejected.truncated:
            examples.truncated.append(line.number)
        examples.end_in_pad += pad_token_id in (chosen.last_token_id, rejected.last_token_id)
        examples.kept.append(Example(line, chosen, rejected, margin_of(line.pair, scheme)))
    return examples


class HasPrompt(Protocol):
    @property
    def prompt(self) -> str: ...


class Encoded(Protocol):
    """A pair or a rated group with its tokens."""

    @property
    def line(self) -> HasPrompt: ...


AnyEncoded = TypeVar("AnyEncoded", bound=Encoded)


def split(
    examples: list[AnyEncoded], fraction: float, seed: int, what: str = "pair"
) -> tuple[list[AnyEncoded], list[AnyEncoded]]:
    """(training examples, held-out examples), at least one each; those of a prompt stay together. `what` is one in messages.

    Raises TrainingError if there are too few prompts for both.
    """
    if not examples:
        raise TrainingError(f"no {what} is left to train on")
    if fraction == 0:
        return examples, []
    prompts = sorted({example.line.prompt for example in examples})
    if len(prompts) == 1:
        raise TrainingError(f"all {what}s have one prompt, so none can be held out; give more, or set --held-out 0")
    random.Random(seed).shuffle(prompts)  # noqa: S311 - to be reproducible, not secret
    wanted = max(1, round(fraction * len(examples)))
    counts = Counter(example.line.prompt for example in examples)
    sizes = list(accumulate(counts[prompt] for prompt in prompts))
    held_out = set(prompts[: min(bisect_left(sizes, wanted) + 1, len(prompts) - 1)])
    return (
        [example for example in examples if example.line.prompt not in held_out],
        [example for example in examples if example.line.prompt in held_out],
    )
