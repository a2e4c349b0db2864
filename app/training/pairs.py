"""Reads a file of preference pairs, in the usual formats, into the API's `Pair`. Knows nothing about models and tokens.

A line is what POST /compare takes for a pair, or one of the forms that data sets come in:

    prompt            chosen, rejected      meaning
    string            strings               a prompt and its two answers (RewardBench, /compare)
    list of turns     strings               a conversation and two answers to it; also as `messages`
    list of turns     lists of turns        TRL's explicit prompt: the answers' turns follow it
    string or none    lists of turns        whole conversations (RewardBench's preference sets, TRL's implicit prompt)
    none              transcripts           whole conversations with marked turns, "\\n\\nHuman: ...\\n\\nAssistant: ..." (hh-rlhf)
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from app.api.compare_schemas import Pair
from app.api.validation_messages import first_error, location_of, reason
from app.errors import InvalidInputError
from app.files.jsonl import name_of, read_lines

FORMS = "give prompt, chosen and rejected, messages, chosen and rejected, or chosen_messages and rejected_messages"
LABELS = ("chosen_is_safe", "rejected_is_safe")
KNOWN = {*Pair.model_fields, "messages", "subset", *LABELS}
Turns = list[Any]
SPEAKER = re.compile(r"\n\n(Human|Assistant):")
"""What begins a turn of a transcript: Bai et al. 2022, arXiv 2204.05862."""
ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class PairLine:
    """A pair, its subset, and whether its responses are safe."""

    number: int
    pair: Pair
    subset: str | None = None
    chosen_is_safe: bool | None = None
    rejected_is_safe: bool | None = None

    @property
    def prompt(self) -> str:
        """Equal for pairs with the same conversation before the response, in whatever form they were given."""
        if self.pair.chosen_messages is not None:
            turns: list[list[Any]] = [list(turn.turn().values()) for turn in self.pair.chosen_messages[:-1]]
        else:
            turns = [["user", self.pair.prompt or ""]]
        return json.dumps(turns)

    @property
    def responses(self) -> tuple[str, str]:
        """(chosen, rejected); for conversations, the last turns."""
        if self.pair.chosen_messages is not None and self.pair.rejected_messages is not None:
            return self.pair.chosen_messages[-1].content or "", self.pair.rejected_messages[-1].content or ""
        return self.pair.chosen or "", self.pair.rejected or ""

    @property
    def is_same(self) -> bool:
        """Whether both sides are the same conversation, so no model can rank them."""
        pair = self.pair
        return (pair.chosen, pair.chosen_messages) == (pair.rejected, pair.rejected_messages)

    def to_json(self) -> bytes:
        return self.pair.model_dump_json(exclude_none=True).encode()


@dataclass(frozen=True, slots=True)
class PairFile:
    """A file's pairs, and for each ignored field the number of lines that have it."""

    name: str
    lines: list[PairLine]
    ignored: Counter[str]

    @property
    def notes(self) -> list[str]:
        return ignored_fields(self.ignored)

    @property
    def digest(self) -> str:
        """A hash that is equal for files with the same pairs in the same order."""
        digest = hashlib.sha256()
        for line in self.lines:
            digest.update(line.to_json() + b"\n")
        return f"sha256:{digest.hexdigest()[:16]}"


def first_fault(place: str, error: ValidationError) -> str:
    """The first error of the line at `place`, in the API's words, and the number of the others."""
    first, more = first_error(error.errors(include_url=False))
    others = f" (and {more} more)" if more else ""
    return f"{place}: {location_of(first)} {reason(first)}{others}".replace(":  ", ": ")


def ignored_fields(ignored: Counter[str]) -> list[str]:
    """One line that names the fields, with the number of lines that have each; none if there are none."""
    names = ", ".join(f"{name:.60} ({count} lines)" for name, count in sorted(ignored.items()))
    return [f"ignored fields: {names}"] if names else []


def read_pairs(file: str) -> PairFile:
    """Raises InvalidInputError that names the file and the line, or OSError if the file cannot be read."""
    return pairs_of(name_of(file), read_lines(file))


def pairs_of(file: str, numbered: Iterable[tuple[int, bytes]]) -> PairFile:
    """The pairs in these lines of JSON; `file` is what errors call them. Raises InvalidInputError that names the line."""
    ignored: Counter[str] = Counter()
    lines = []
    for number, line in numbered:
        place = f"{file} line {number}"
        fields = from_json(line)
        if not isinstance(fields, dict):
            raise InvalidInputError(f"{place} is no object; {FORMS}")
        given = {
            name: value for name, value in fields.items() if value is not None
        }  # exports fill absent fields with null
        unknown = given.keys() - KNOWN
        check_misspelt(place, unknown, given)
        ignored.update(unknown)
        lines.append(pair_line(place, number, given))
    return PairFile(file, lines, ignored)


def check_misspelt(place: str, unknown: Iterable[str], given: dict[str, Any]) -> None:
    """Rejects misspelt fields that would decide the margin; misspelt required fields fail elsewhere."""
    for name in sorted(unknown):
        meant = get_close_matches(name.lower(), {"rating", "margin"} - given.keys(), 1, 0.8)
        if meant:
            raise InvalidInputError(f"{place} has {name!r}; did you mean {meant[0]}?")


def pair_line(place: str, number: int, given: dict[str, Any]) -> PairLine:
    labels = {}
    for name in LABELS:
        if not isinstance(given.get(name), bool | None):
            raise InvalidInputError(f"{place}: {name} is {given[name]!r}; it must be true or false")
        labels[name] = given.get(name)
    subset = given.get("subset")
    if not isinstance(subset, str | None):
        raise InvalidInputError(f"{place}: subset is {subset!r}; it must be a string")
    try:
        pair = Pair.model_validate(pair_fields(place, given))
    except ValidationError as error:
        raise InvalidInputError(first_fault(place, error)) from None
    return PairLine(number, pair, subset, **labels)


def pair_fields(place: str, given: dict[str, Any]) -> dict[str, Any]:
    """The line as a pair of /compare: strings unchanged, anything with turns as whole conversations."""
    fields = {name: given[name] for name in Pair.model_fields if name in given}
    if "messages" in given:
        if "prompt" in given:
            raise InvalidInputError(f"{place} has both prompt and messages; {FORMS}")
        fields["prompt"] = given["messages"]
    prompt, chosen, rejected = (fields.get(name) for name in ("prompt", "chosen", "rejected"))
    if prompt is None:
        chosen = turns_of_transcript(f"{place}: chosen", chosen)
        rejected = turns_of_transcript(f"{place}: rejected", rejected)
    if not any(isinstance(value, list) for value in (prompt, chosen, rejected)):
        return fields
    if chosen is None or rejected is None:
        raise InvalidInputError(f"{place} has no {'chosen' if chosen is None else 'rejected'}; {FORMS}")
    rest = {name: value for name, value in fields.items() if name not in {"prompt", "chosen", "rejected"}}
    return rest | {
        "chosen_messages": conversation(f"{place}: chosen", prompt, chosen),
        "rejected_messages": conversation(f"{place}: rejected", prompt, rejected),
    }


def turns_of_transcript(place: str, side: object) -> object:
    """The turns of a text that begins with a person's; anything else unchanged."""
    if not isinstance(side, str) or not side.startswith("\n\nHuman:"):
        return side
    _, *parts = SPEAKER.split(side)
    turns = [
        {"role": ROLES[speaker], "content": text.strip()} for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1]["role"] != "assistant":
        raise InvalidInputError(f"{place} is a transcript whose last turn is Human's; end it with the Assistant's")
    return turns


def conversation(place: str, prompt: object, side: object) -> Turns:
    """All turns of one side. A response alone is appended to the prompt; a side that starts with another role repeats the prompt already."""
    before = prompt if isinstance(prompt, list) else [] if prompt is None else [{"role": "user", "content": prompt}]
    if prompt is None and isinstance(side, str):
        raise InvalidInputError(
            f"{place} is a text where the other side is a conversation, and there is no prompt; {FORMS}"
        )
    if not isinstance(side, list):
        return [*before, {"role": "assistant", "content": side}]
    if not side or not all(isinstance(turn, dict) for turn in side):
        hint = " (for best of n, give each answer a line)" if side else ""
        raise InvalidInputError(f"{place} must be a string or a list of turns with role and content{hint}")
    if side[0].get("role") == "assistant" and side[: len(before)] != before:
        return [*before, *side]
    if isinstance(prompt, list) and side[: len(before)] != before:
        raise InvalidInputError(f"{place} neither begins with the prompt's turns nor answers them")
    return side
