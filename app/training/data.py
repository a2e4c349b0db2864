"""Reads the data of a training run: preference pairs, or rated groups. The first line tells which."""

from pydantic_core import from_json

from app.files.jsonl import name_of, read_lines
from app.training.pairs import PairFile, pairs_of
from app.training.rated.groups import GroupFile, groups_of

CHOSEN = {"chosen", "chosen_messages"}


def read_data(file: str) -> PairFile | GroupFile:
    """Raises InvalidInputError that names the file and the line, or OSError if the file cannot be read."""
    lines = list(read_lines(file))
    fields = from_json(lines[0][1])
    is_rated = isinstance(fields, dict) and "responses" in fields and not CHOSEN & fields.keys()
    return groups_of(name_of(file), lines) if is_rated else pairs_of(name_of(file), lines)
