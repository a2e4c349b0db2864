"""The written preferences: their form, their amount, no text twice, and no length that gives the better one away."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from models.recipe.groups import Group, Response
from models.recipe.preferences import (
    agreement,
    longer_wins,
    openings,
    pairs_of,
    read_preferences,
    read_second_ratings,
)

GOOD: dict[str, Any] = {
    "kind": "a",
    "prompt": "What is two and two?",
    "responses": [
        {"text": "It is four.", "helpfulness": 5, "safety": 5},
        {"text": "It is five.", "helpfulness": 1, "safety": 5},
    ],
}
NUM_JUDGED = 40
"""Pairs of a kind from which on the share of longer winners says something."""


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return read_preferences()


def test_there_are_enough_of_enough_kinds(groups: list[Group]) -> None:
    kinds = {group.kind for group in groups}
    assert len(kinds) >= 26
    assert sum(1 for _ in pairs_of(groups, "helpfulness")) >= 3000
    assert all(sum(group.kind == kind for group in groups) >= 40 for kind in kinds)


@pytest.mark.parametrize("task", ["helpfulness", "safety"])
def test_neither_the_longer_nor_the_shorter_response_wins_in_any_kind(groups: list[Group], task: str) -> None:
    for kind, own in itertools.groupby(groups, key=lambda group: group.kind):
        pairs = list(pairs_of(own, task))
        if len(pairs) >= NUM_JUDGED:
            assert 0.44 <= longer_wins(pairs) <= 0.56, kind


def test_no_opening_marks_the_good_or_the_bad_responses(groups: list[Group]) -> None:
    best, others = (openings(groups, of_the_best=which) for which in (True, False))
    for opening in ("i can't", "i'm sorry,", "i don't", "it's a"):
        assert min(best[opening], others[opening]) >= 3, opening
    assert max(best.values()) / best.total() < 0.03
    assert max(others.values()) / others.total() < 0.03


def test_two_raters_agree_on_what_is_harmful(groups: list[Group]) -> None:
    both = read_second_ratings(groups)
    assert len(both) > 2000
    harmful, harmless = ([second for first, second in both if first in ratings] for ratings in ((1, 2), (5,)))
    assert sum(rating <= 2 for rating in harmful) / len(harmful) > 0.95
    assert sum(rating <= 2 for rating in harmless) / len(harmless) < 0.01
    assert agreement([(1, 1), (2, 3), (5, 5), (5, 2)]).startswith(
        "4 responses were rated twice for safety: 0.50 the same, 0.75 at most one apart. Of 2 harmful ones the second rater found 1 harmful"
    )


def test_second_ratings_of_another_prompt_are_refused(groups: list[Group], tmp_path: Path) -> None:
    file = tmp_path / "second.jsonl"
    file.write_text(json.dumps({"kind": groups[0].kind, "prompt": groups[0].prompt, "safety": [1]}) + "\n")
    with pytest.raises(ValueError, match=r"second\.jsonl line 1 fits no prompt"):
        read_second_ratings(groups, file)


def change(**fields: object) -> str:
    return json.dumps(GOOD | fields)


def chat(*roles: str) -> str:
    messages = [{"role": role, "content": f"Turn {number}"} for number, role in enumerate(roles)]
    return json.dumps({"kind": "a", "messages": messages, "responses": GOOD["responses"]})


def response(**fields: object) -> dict[str, Any]:
    first: dict[str, Any] = GOOD["responses"][0]
    return first | fields


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([change(kind="b")], "kind 'a'"),
        ([change(note="x")], "nothing else"),
        ([change(prompt=" ")], "the prompt is empty"),
        ([chat("user", "assistant")], "end with the user's"),
        ([chat("assistant", "user", "user")], "by turns"),
        ([change(responses=[response()])], "1 responses; give 2 to 6"),
        ([change(responses=[response(), response(text=" ")])], "give 1 to 1000"),
        ([change(responses=[response(), response(text="x", safety=6)])], "safety is 6"),
        ([change(responses=[response(), {"text": "x", "safety": 5}])], "it must have text, helpfulness and safety"),
        ([change(responses=[response(), response()])], "repeats a text"),
        ([change(), change(responses=[response(text="Yes."), response(text="No.")])], "a.jsonl line 2 repeats a text"),
    ],
)
def test_an_invalid_line_is_named(tmp_path: Path, lines: list[str], words: str) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        read_preferences(tmp_path)


def test_a_conversation_has_messages_in_place_of_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(chat("user", "assistant", "user") + "\n", encoding="utf-8")
    (group,) = read_preferences(tmp_path)
    assert group.turns == (("user", "Turn 0"), ("assistant", "Turn 1"), ("user", "Turn 2"))


def test_pairs_are_of_responses_whose_ratings_differ() -> None:
    texts = (Response("long one", 5, 4), Response("short", 5, 2), Response("mid one", 1, 4))
    group = Group("a", (("user", "?"),), texts)
    found = [(pair.texts, pair.difference) for pair in pairs_of([group], "helpfulness")]
    assert found == [(("long one", "short"), 2), (("mid one", "short"), 2)]
    assert longer_wins(list(pairs_of([group], "helpfulness"))) == 1
    assert longer_wins(list(pairs_of([group], "safety"))) == 0.5
