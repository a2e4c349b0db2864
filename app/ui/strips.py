"""The score after every word of a response, as a chart and as coloured words. Draws nothing.

A model scores after every token; a word's score is the one after its last token. Tokens of the prompt and of the chat
template are not shown, only the scores after them: the score before the response, and the final score.
"""

import itertools
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.rewards.selection import threshold_score
from app.ui.plots import Axis, Chart, Line, Rule, path
from app.ui.render import kind
from app.ui.tokens import Tokens

MAX_TICKS = 8
NEAR = 0.3
"""The threshold is drawn if it is within the scores' range, widened by this share of it on either side."""


@dataclass(frozen=True, slots=True)
class Word:
    """`steps`: per model, the change of the score by this word, from -1 to 1 relative to the response's largest change."""

    text: str
    steps: dict[str, float]


@dataclass(frozen=True, slots=True)
class Strip:
    """One chart for the models with the same tokens, with the words below it.

    `series` has per model one score per point: before the response where `has_start`, after each word, and at the end of the
    turn where `has_end`.
    """

    chart: Chart
    words: tuple[Word, ...]
    series: dict[str, list[float]]
    has_start: bool
    has_end: bool
    shows_limit: bool


def strips(scores: Mapping[str, Mapping[str, Any]], texts: Mapping[str, Tokens], threshold: float) -> list[Strip]:
    """One strip per tokenization; models with the same tokens share one."""
    groups: dict[Tokens, dict[str, list[float]]] = {}
    for name, entry in scores.items():
        series = entry.get("token_scores")
        if series and name in texts and len(texts[name].texts) == len(series):
            groups.setdefault(texts[name], {})[name] = series
    return [strip(tokens, series, threshold) for tokens, series in groups.items()]


def strip(tokens: Tokens, token_scores: Mapping[str, list[float]], threshold: float) -> Strip:
    """Makes the strip from the scores after every token, shape (tokens,) per model."""
    first, last = tokens.num_prompt, len(tokens.texts) - tokens.num_after
    spans = word_spans(tokens.texts, first, last)
    has_start, has_end = first > 0, tokens.num_after > 0 or not spans
    ends = [*([first] if has_start else []), *(end for _, end in spans), *([len(tokens.texts)] if has_end else [])]
    series = {name: [values[end - 1] for end in ends] for name, values in token_scores.items()}
    changes = {name: relative_changes(values, has_start=has_start) for name, values in series.items()}
    words = tuple(
        Word("".join(tokens.texts[start:end]), {name: steps[i] for name, steps in changes.items()})
        for i, (start, end) in enumerate(spans)
    )
    chart, shows_limit = line_chart(series, threshold, starts_at=0 if has_start else 1)
    return Strip(chart, words, series, has_start, has_end, shows_limit)


def line_chart(series: Mapping[str, list[float]], threshold: float, starts_at: int) -> tuple[Chart, bool]:
    """The lines, and whether the safety threshold is among them."""
    limit = threshold_score(threshold)
    values = [value for line in series.values() for value in line]
    reach = NEAR * (max(values) - min(values))
    shows_limit = "safety" in series and min(values) - reach <= limit <= max(values) + reach
    num_points = len(next(iter(series.values())))
    x = Axis(starts_at, starts_at + max(num_points - 1, 1), max(1, round(num_points / MAX_TICKS)))
    y = Axis.fitting([*values, *([limit] if shows_limit else [])])
    lines = tuple(
        Line(name, kind(name), path(x, y, list(enumerate(line if len(line) > 1 else line * 2, starts_at))))
        for name, line in series.items()
    )
    levels = (Rule(y.at(limit), "", "limit"),) if shows_limit else ()
    return Chart(x, y, lines, levels), shows_limit


def relative_changes(values: list[float], *, has_start: bool) -> list[float]:
    """The change of the score by each word, from -1 to 1; 0 for a first word with no score before it."""
    changes = [b - a for a, b in itertools.pairwise(values)]
    if not has_start:
        changes = [0.0, *changes]
    largest = max(map(abs, changes), default=0.0) or 1.0
    return [round(change / largest, 3) for change in changes]


def word_spans(texts: tuple[str, ...], first: int, last: int) -> list[tuple[int, int]]:
    """(first token, end) of each word in the tokens from `first` to `last`.

    Words are separated by white space and include their punctuation; in scripts without spaces, each token is a word. White
    space belongs to the word after it, or to the last word at the very end.
    """
    starts = [i for i in range(first, last) if i == first or begins_word(texts[i - 1], texts[i])]
    spans: list[tuple[int, int]] = []
    for start, end in zip(starts, [*starts, last][1:], strict=True):
        if spans and not "".join(texts[spans[-1][0] : spans[-1][1]]).strip():
            spans[-1] = (spans[-1][0], end)  # only white space, before a word
        else:
            spans.append((start, end))
    return spans


def begins_word(before: str, text: str) -> bool:
    """Whether a token with this text begins a word; an empty text is the beginning of a character, see `tokens.pieces`."""
    return bool(text) and (text[0].isspace() or before[-1:].isspace() or is_wide(text[0]))


def is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in {"W", "F"} and character.isalnum()
