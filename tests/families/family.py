"""The list of families: each a function that builds a checkpoint in the family's true shape, with the source of its rule."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.families.reference import Built

Build = Callable[[Path], Built]


@dataclass(frozen=True)
class Family:
    name: str
    row: str
    """The row of docs/models.md that it stands for."""
    source: str
    """Where the authors' rule belongs: a repository and a file, or a model card. docs/models.md says which of them were read."""
    build: Build


FAMILIES: list[Family] = []


def family(name: str, *, source: str, row: str = "") -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        FAMILIES.append(Family(name, row or name, source, build))
        return build

    return register
