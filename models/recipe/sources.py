"""The human judgements that the safety model learns from beside our own: pyrit's severities and hh-rlhf's pairs.

Neither is committed: pyrit's come out of its wheel, hh-rlhf's from a file (HH_PAIRS) or, where that is not set, the hub.
"""

import csv
import io
import json
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from models.recipe.common import wheel
from models.recipe.packed import Group, Response

PYRIT = "pyrit==1.1.0"
HARM = "pyrit/datasets/scorer_evals/harm/"
MAX_RESPONSES = 6
"""Of an objective in one group; the rest makes another, so that a packed row stays short."""
NUM_HH = 500
"""Pairs of the file's 1,500: more take longer than the recipe has."""
HH = "Anthropic/hh-rlhf"
TURNS = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def read_severities() -> list[Group]:
    """pyrit's responses to harmful objectives with their human severities s from 0 to 1, as the safety rating 5 - 4 s."""
    by_objective: dict[str, list[Response]] = defaultdict(list)
    prompts: dict[str, str] = {}
    with zipfile.ZipFile(wheel(PYRIT)) as archive:
        for path in sorted(archive.namelist()):
            if not (path.startswith(HARM) and path.endswith(".csv")):
                continue
            text = io.StringIO(archive.read(path).decode("utf-8", errors="replace"))
            lines = (row for row in csv.reader(text) if row and not row[0].startswith("#"))
            header = next(lines)
            for row in (dict(zip(header, line, strict=False)) for line in lines):
                key = re.sub(r"[^a-z0-9]+", " ", row["objective"].lower()).strip()
                prompts.setdefault(key, repair(row["objective"]))
                by_objective[key].append(Response(repair(row["assistant_response"]), safety=5 - 4 * severity(row)))
    return [
        Group("pyrit", (("user", prompts[key]),), tuple(part))
        for key, responses in by_objective.items()
        for part in parts_of(responses)
    ]


def parts_of(responses: list[Response]) -> Iterator[list[Response]]:
    unique = list({response.text: response for response in responses if response.text}.values())
    for start in range(0, len(unique), MAX_RESPONSES):
        yield unique[start : start + MAX_RESPONSES]


def severity(row: dict[str, str]) -> float:
    """The mean of the one to three human scores."""
    scores = [float(value) for name, value in row.items() if name and name.startswith("human_score") and value.strip()]
    return sum(scores) / len(scores)


def repair(text: str) -> str:
    """Undoes the most frequent encoding damage of the files and collapses blank space."""
    for wrong, right in (
        ("\u00e2\u20ac\u2122", "'"),
        ('\u00e2\u20ac"', "-"),
        ("\ufffd", "'"),
        ("\u00e2\u20ac\u0153", '"'),
    ):
        text = text.replace(wrong, right)
    return re.sub(r"[ \t]+", " ", text).strip()


def read_hh_pairs() -> list[Group]:
    """NUM_HH pairs of hh-rlhf's harmless-base, test split: two answers, the chosen one rated 5 and the rejected one 3.

    The ratings are only an order: of two careless answers one was chosen all the same.
    """
    if file := os.environ.get("HH_PAIRS"):
        with Path(file).open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    else:
        from datasets import load_dataset

        rows = list(load_dataset(HH, data_dir="harmless-base", split=f"test[:{2 * NUM_HH}]"))
    return [group for row in rows if (group := hh_group(row)) is not None][:NUM_HH]


def hh_group(row: dict[str, str]) -> Group | None:
    """None where the answers are the same or empty, or the conversations differ before the last turn."""
    chosen, rejected = turns_of(row["chosen"]), turns_of(row["rejected"])
    texts = (chosen[-1][1], rejected[-1][1])
    if chosen[:-1] != rejected[:-1] or texts[0] == texts[1] or not all(texts) or chosen[-1][0] != "assistant":
        return None
    responses = (Response(texts[0], safety=5), Response(texts[1], safety=3))
    return Group("hh", tuple(chosen[:-1]), responses, absolute=False)


def turns_of(conversation: str) -> list[tuple[str, str]]:
    _, *parts = TURNS.split(conversation)
    return [(ROLES[who], content.strip()) for who, content in zip(parts[::2], parts[1::2], strict=True)]
