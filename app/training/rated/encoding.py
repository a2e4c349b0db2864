"""Tokenizes rated groups as the service does, into packed rows."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from app.api.pairs import engine_messages
from app.engine.inputs import Input, Messages, PromptResponse
from app.engine.sequence import TokenSequence
from app.engine.tokenization import Tokenization
from app.errors import InvalidInputError, TooLongError
from app.training.encoding import note_on_padding, notes_on_lines
from app.training.options import TooLong
from app.training.rated.groups import GroupFile, GroupLine, RatedResponse
from app.training.rated.losses import Objective
from app.training.rated.packed import Row, pack_sequences


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    line: GroupLine
    """With the responses that are kept."""
    row: Row


@dataclass(slots=True)
class EncodedGroups:
    """The encoded groups of a file, and the lines of the responses and prompts that were dropped, by reason."""

    kept: list[EncodedGroup] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)
    made_equal: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    without_terms: list[int] = field(default_factory=list)
    end_in_pad: int = 0

    def notes(self, max_length: int, pad_token: str) -> list[str]:
        """One sentence per reason for which responses or prompts were dropped or changed."""
        named = (
            (self.too_long, f"responses dropped: over {max_length} tokens with their prompt"),
            (self.made_equal, f"responses dropped: the same as another one once cut to {max_length} tokens"),
            (self.truncated, f"responses truncated to {max_length} tokens"),
            (self.without_terms, "prompts dropped: their responses do not differ in any rating"),
        )
        return [*notes_on_lines(named), *note_on_padding(self.end_in_pad, "responses", pad_token)]


def encode(
    groups: GroupFile,
    tokenization: Tokenization,
    pad_token_id: int,
    objective: Objective,
    too_long: TooLong,
    progress: Callable[[], object],
) -> EncodedGroups:
    """Raises InvalidInputError that names the line if a response cannot be tokenized, is too long, or repeats another one."""
    found = EncodedGroups()
    for line in groups.lines:
        progress()
        kept = kept_responses(f"{groups.name} line {line.number}", line, tokenization, too_long, found)
        own = replace(line, responses=tuple(response for response, _ in kept))
        if not kept or not has_terms(own, objective):
            if len(kept) == len(line.responses):
                found.without_terms.append(line.number)
            continue
        sequences = []
        for _, sequence in kept:
            ids = sequence.token_ids.tolist()
            scored = without_padding(ids, pad_token_id)
            found.end_in_pad += len(scored) < len(ids)
            sequences.append(scored)
        found.kept.append(EncodedGroup(own, pack_sequences(sequences)))
    return found


def kept_responses(
    location: str, line: GroupLine, tokenization: Tokenization, too_long: TooLong, found: EncodedGroups
) -> list[tuple[RatedResponse, TokenSequence]]:
    inputs = [
        Input(form_of(line, response), line.number, f"{location}: responses[{i}]")
        for i, response in enumerate(line.responses)
    ]
    kept: list[tuple[RatedResponse, TokenSequence]] = []
    first: dict[object, int] = {}
    outcomes = tokenization.encode(inputs, "error" if too_long == "drop" else too_long)
    for i, (response, outcome) in enumerate(zip(line.responses, outcomes, strict=True)):
        if isinstance(outcome, TooLongError) and too_long != "error":
            found.too_long.append(line.number)
        elif isinstance(outcome, InvalidInputError):
            raise outcome
        elif outcome.key in first:
            if not outcome.truncated:
                raise InvalidInputError(
                    f"{location}: responses[{i}] has the same tokens as responses[{first[outcome.key]}]; take one out"
                )
            found.made_equal.append(line.number)
        else:
            first[outcome.key] = i
            if outcome.truncated:
                found.truncated.append(line.number)
            kept.append((response, outcome))
    return kept


def form_of(line: GroupLine, response: RatedResponse) -> PromptResponse | Messages:
    if isinstance(line.before, str):
        return PromptResponse(line.before, response.text)
    turns = engine_messages(line.before).messages
    return Messages((*turns, {"role": "assistant", "content": response.text}))


def has_terms(line: GroupLine, objective: Objective) -> bool:
    """Whether the loss has a term for the group."""
    if any(line.differs_in(name) for name in objective.names):
        return True
    rated = {name for response in line.responses for name in response.ratings}
    return objective.pointwise in rated or objective.across in rated


def without_padding(ids: list[int], pad_token_id: int) -> list[int]:
    """The ids up to the scored token, the last one that is not the pad token; the first id where all are."""
    scored = next((i for i in range(len(ids) - 1, -1, -1) if ids[i] != pad_token_id), 0)
    return ids[: scored + 1]
