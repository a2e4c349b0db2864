"""Reads a file of rated groups: prompts with their rated responses. Knows nothing about models and tokens.

    {"prompt": "...", "responses": [{"text": "...", "helpfulness": 4, "safety": 5}, {"text": "...", "helpfulness": 1}]}

`messages`, or a `prompt` that is a list of turns, may replace the prompt. Every field of a response but its text is a rating.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic_core import from_json

from app.api.compare_schemas import Pair
from app.api.schemas import Body, Message
from app.checkpoints.model_settings import check_name
from app.errors import InvalidInputError
from app.training.pairs import first_fault, ignored_fields

FORM = 'give prompt or messages, and responses, such as [{"text": "Yes.", "helpfulness": 4}]'
LOWEST, HIGHEST = 1, 5


@dataclass(frozen=True, slots=True)
class RatedResponse:
    text: str
    ratings: dict[str, float]
    """By name: from 1 (worst) to 5, fractions too. A name that is absent was not rated."""


@dataclass(frozen=True, slots=True)
class GroupLine:
    """A prompt, as a string or as turns, and its responses."""

    number: int
    before: str | list[Message]
    responses: tuple[RatedResponse, ...]

    @property
    def prompt(self) -> str:
        """Equal for groups with the same conversation before the responses, in whatever form it was given."""
        if isinstance(self.before, str):
            return json.dumps([["user", self.before]])
        return json.dumps([list(message.turn().values()) for message in self.before])

    def ratings(self, name: str) -> list[float | None]:
        """Of each response; None where it has no rating of this name."""
        return [response.ratings.get(name) for response in self.responses]

    def differs_in(self, name: str) -> bool:
        """Whether two responses have different ratings of this name."""
        return len({*self.ratings(name)} - {None}) > 1

    def pair(self, better: int, worse: int, margin: float) -> Pair:
        """Two of the responses as POST /compare takes them."""
        texts = self.responses[better].text, self.responses[worse].text
        if isinstance(self.before, str):
            return Pair(prompt=self.before, chosen=texts[0], rejected=texts[1], margin=margin)
        chosen, rejected = ([*self.before, Message(role="assistant", content=text)] for text in texts)
        return Pair(chosen_messages=chosen, rejected_messages=rejected, margin=margin)


@dataclass(frozen=True, slots=True)
class GroupFile:
    """A file's groups, and for each ignored field the number of lines that have it."""

    name: str
    lines: list[GroupLine]
    ignored: Counter[str]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the ratings, in alphabetical order."""
        return tuple(sorted({name for line in self.lines for each in line.responses for name in each.ratings}))

    @property
    def notes(self) -> list[str]:
        return ignored_fields(self.ignored)

    @property
    def digest(self) -> str:
        """A hash that is equal for files with the same groups in the same order."""
        digest = hashlib.sha256()
        for line in self.lines:
            responses = [[each.text, sorted(each.ratings.items())] for each in line.responses]
            digest.update(json.dumps([line.prompt, responses]).encode() + b"\n")
        return f"sha256:{digest.hexdigest()[:16]}"


class ResponseFields(Body):
    """A response as it stands in a line; its ratings are the extra fields."""

    model_config = ConfigDict(extra="allow")

    text: str


class GroupFields(Body):
    """A line: the fields that are read."""

    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    responses: list[ResponseFields] = Field(min_length=1)


def groups_of(file: str, numbered: Iterable[tuple[int, bytes]]) -> GroupFile:
    """The groups in these lines of JSON; `file` is what errors call them. Raises InvalidInputError that names the line."""
    ignored: Counter[str] = Counter()
    lines = []
    for number, line in numbered:
        place = f"{file} line {number}"
        fields = from_json(line)
        if not isinstance(fields, dict) or "responses" not in fields:
            raise InvalidInputError(f"{place} has no responses, as the lines before it have; {FORM}")
        given = {name: value for name, value in fields.items() if value is not None}
        ignored.update(given.keys() - GroupFields.model_fields.keys())
        lines.append(group_line(place, number, given))
    groups = GroupFile(file, lines, ignored)
    check_ratings(groups)
    return groups


def group_line(place: str, number: int, given: dict[str, Any]) -> GroupLine:
    known = {name: given[name] for name in GroupFields.model_fields if name in given}
    if isinstance(known.get("prompt"), list):
        if "messages" in known:
            raise InvalidInputError(f"{place} has both prompt and messages; {FORM}")
        known["messages"] = known.pop("prompt")
    try:
        fields = GroupFields.model_validate(known)
    except ValidationError as error:
        raise InvalidInputError(f"{first_fault(place, error)}; {FORM}") from None
    if (fields.prompt is None) == (fields.messages is None):
        has = "neither prompt nor messages" if fields.prompt is None else "both prompt and messages"
        raise InvalidInputError(f"{place} has {has}; {FORM}")
    before = fields.prompt if fields.prompt is not None else fields.messages or []
    return GroupLine(number, before, tuple(rated_responses(place, fields.responses)))


def rated_responses(place: str, responses: list[ResponseFields]) -> Iterator[RatedResponse]:
    seen: dict[str, int] = {}
    for i, response in enumerate(responses):
        if response.text in seen:
            raise InvalidInputError(f"{place}: responses[{i}] repeats responses[{seen[response.text]}]; take one out")
        seen[response.text] = i
        given = {name: value for name, value in (response.model_extra or {}).items() if value is not None}
        if not given:
            raise InvalidInputError(
                f"{place}: responses[{i}] has no rating; give at least one, such as helpfulness, from {LOWEST} to {HIGHEST}"
            )
        for name, value in given.items():
            check_rating(f"{place}: responses[{i}]", name, value)
        yield RatedResponse(response.text, given)


def check_rating(place: str, name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not LOWEST <= value <= HIGHEST:  # type: ignore[operator]  # a number by now
        raise InvalidInputError(
            f"{place}.{name} is {value!r:.60}; a rating is a number from {LOWEST} to {HIGHEST}, so correct it, or take the field out"
        )
    try:
        check_name(name)
    except ValueError as error:
        raise InvalidInputError(f"{place}: a rating's name is its model's name, and {error}") from None


def check_ratings(groups: GroupFile) -> None:
    """Raises InvalidInputError for a rating by which no prompt has two responses that differ, such as a misspelt one."""
    for name in groups.names:
        if not any(line.differs_in(name) for line in groups.lines):
            first = next(line.number for line in groups.lines if any(name in each.ratings for each in line.responses))
            others = ", ".join(other for other in groups.names if other != name)
            known = f" (the others are {others})" if others else ""
            raise InvalidInputError(
                f"{groups.name} line {first} has the rating {name!r}, by which no prompt has two responses that differ; correct its "
                f"name{known}, or take it out"
            )
