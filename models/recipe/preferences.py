"""The preferences that were written for this project, `data/preferences/<kind>.jsonl`: read, checked, and as pairs.

One prompt a line: `{"kind", "prompt", "responses": [{"text", "helpfulness", "safety"}, ...]}`, ratings from 1 to 5. A
conversation has its turns, `"messages": [{"role", "content"}, ...]`, in place of the prompt. `reward-service train` reads both.

    python -m models.recipe.preferences     # prints what the check finds, by kind
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.recipe.common import DATA, read_jsonl
from models.recipe.groups import TASKS, Group, Response

PREFERENCES = DATA / "preferences"
SECOND_RATINGS = DATA / "second_ratings.jsonl"
RATINGS = (1, 2, 3, 4, 5)
HARMFUL, HARMLESS = 2, 5
"""A response is harmful up to the first safety rating, harmless from the second on."""
NUM_RESPONSES = range(2, 7)
LONGEST = 1000
"""Characters of a response."""
SHORT = 12
"""Responses up to so many characters, such as "No.", may answer several prompts."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses of a group whose ratings differ."""

    group: Group
    better: int
    worse: int
    difference: float

    @property
    def texts(self) -> tuple[str, str]:
        return self.group.responses[self.better].text, self.group.responses[self.worse].text


def read_preferences(folder: Path = PREFERENCES) -> list[Group]:
    """Every prompt, kind by kind. Raises ValueError that names the file and the line of the first invalid one."""
    groups: list[Group] = []
    seen: dict[str, str] = {}
    for file in sorted(folder.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{file.name} line {number}"
                group = group_of(where, file.stem, json.loads(line))
                asked = "\n".join(content for _, content in group.turns)
                for text in (f"prompt {asked}", *(response.text for response in group.responses)):
                    if text in seen and (len(text) > SHORT or seen[text] == where):
                        raise ValueError(f"{where} repeats a text of {seen[text]}: {text[:60]!r}")
                    seen[text] = where
                groups.append(group)
    return groups


def group_of(where: str, kind: str, row: dict[str, Any]) -> Group:
    if set(row) not in ({"kind", "prompt", "responses"}, {"kind", "messages", "responses"}) or row["kind"] != kind:
        raise ValueError(f"{where} must have kind {kind!r}, prompt or messages, and responses, nothing else")
    turns = tuple(map(turn_of, row.get("messages") or [{"role": "user", "content": row.get("prompt")}]))
    if [role for role, _ in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise ValueError(f"{where}: the turns must be the user's and the assistant's by turns and end with the user's")
    if not all(isinstance(content, str) and content.strip() for _, content in turns):
        raise ValueError(f"{where}: the prompt is empty")
    if len(row["responses"]) not in NUM_RESPONSES:
        raise ValueError(f"{where} has {len(row['responses'])} responses; give 2 to 6")
    for response in row["responses"]:
        if set(response) != {"text", *TASKS}:
            raise ValueError(f"{where}: a response has {sorted(response)}; it must have text, helpfulness and safety")
        if not response["text"].strip() or len(response["text"]) > LONGEST:
            raise ValueError(f"{where}: a response has {len(response['text'])} characters; give 1 to {LONGEST}")
        for task in TASKS:
            if response[task] not in RATINGS:
                raise ValueError(f"{where}: {task} is {response[task]!r}; it must be 1, 2, 3, 4 or 5")
    return Group(kind, turns, tuple(Response(**response) for response in row["responses"]))


def read_second_ratings(groups: Iterable[Group], file: Path = SECOND_RATINGS) -> list[tuple[float, int]]:
    """The author's and the second rating of the safety of every response that has both, `{"kind", "prompt", "safety": [...]}` a line.

    Raises ValueError that names the line of a prompt that there is not, or has another number of responses.
    """
    by_prompt = {(group.kind, group.prompt): group for group in groups}
    both: list[tuple[float, int]] = []
    for number, row in enumerate(read_jsonl(file), 1):
        group = by_prompt.get((row["kind"], row["prompt"]))
        if group is None or len(group.responses) != len(row["safety"]) or not {*row["safety"]} <= {*RATINGS}:
            raise ValueError(f"{file.name} line {number} fits no prompt of {row['kind']}: {row['prompt'][:60]!r}")
        for response, rating in zip(group.responses, row["safety"], strict=True):
            if response.safety is not None:
                both.append((response.safety, rating))
    return both


def agreement(both: Sequence[tuple[float, int]]) -> str:
    """In words, how far two raters agree."""
    same = sum(first == second for first, second in both) / len(both)
    near = sum(abs(first - second) <= 1 for first, second in both) / len(both)
    harmful = [second for first, second in both if first <= HARMFUL]
    harmless = [second for first, second in both if first >= HARMLESS]
    return (
        f"{len(both)} responses were rated twice for safety: {same:.2f} the same, {near:.2f} at most one apart. "
        f"Of {len(harmful)} harmful ones the second rater found {sum(each <= HARMFUL for each in harmful)} harmful and "
        f"{sum(each >= HARMLESS for each in harmful)} harmless, of {len(harmless)} harmless ones "
        f"{sum(each <= HARMFUL for each in harmless)} harmful and {sum(each >= HARMLESS for each in harmless)} harmless."
    )


def turn_of(message: dict[str, Any]) -> tuple[str, Any]:
    return message["role"], message["content"]


def pairs_of(groups: Iterable[Group], task: str) -> Iterator[Pair]:
    """Every two responses of a group whose ratings differ."""
    for group in groups:
        for (i, a), (j, b) in itertools.combinations(enumerate(group.ratings(task)), 2):
            if a is not None and b is not None and a != b:
                yield Pair(group, *((i, j) if a > b else (j, i)), abs(a - b))


def longer_wins(pairs: Sequence[Pair]) -> float:
    """The share of pairs that the longer response wins; equal lengths count half. 0.5 where there are no pairs."""
    lengths = [tuple(map(len, pair.texts)) for pair in pairs]
    return sum((a > b) + 0.5 * (a == b) for a, b in lengths) / len(lengths) if lengths else 0.5


def openings(groups: Iterable[Group], *, of_the_best: bool) -> Counter[str]:
    """How often the responses with the highest helpfulness of their prompt, or the others, begin with which two words."""
    found: Counter[str] = Counter()
    for group in groups:
        best = max(rating for rating in group.ratings("helpfulness") if rating is not None)
        for response in group.responses:
            if (response.helpfulness == best) == of_the_best:
                found[" ".join(response.text.split()[:2]).lower()] += 1
    return found


def main() -> None:
    groups = read_preferences()
    for kind, own in itertools.groupby(groups, key=lambda group: group.kind):
        members = list(own)
        shares = {task: list(pairs_of(members, task)) for task in TASKS}
        told = "; ".join(
            f"{task} {len(pairs)} pairs, longer wins {longer_wins(pairs):.2f}" for task, pairs in shares.items()
        )
        print(f"{kind}: {len(members)} prompts; {told}")
    for best in (True, False):
        print("openings of", "the best:" if best else "the others:", openings(groups, of_the_best=best).most_common(8))
    print(agreement(read_second_ratings(groups)))


if __name__ == "__main__":
    main()
