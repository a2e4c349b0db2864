"""Files of rated groups: what is read, and what is refused by line, value and remedy."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import InvalidInputError
from app.training.data import read_data
from app.training.pairs import PairFile
from app.training.rated.groups import GroupFile
from tests.training.kindness import write_lines

GOOD: dict[str, Any] = {
    "prompt": "What is two and two?",
    "responses": [{"text": "Four.", "helpfulness": 5, "safety": 5}, {"text": "Five.", "helpfulness": 1.5, "safety": 4}],
}
TURNS = [{"role": "user", "content": "Hi"}]


def read(tmp_path: Path, *lines: Any) -> GroupFile:
    found = read_data(write_lines(tmp_path / "groups.jsonl", *lines))
    assert isinstance(found, GroupFile)
    return found


def line(**fields: Any) -> dict[str, Any]:
    return GOOD | fields


def response(**fields: Any) -> dict[str, Any]:
    return {"text": "Six.", "helpfulness": 2} | fields


def test_a_group_has_a_prompt_responses_and_their_ratings(tmp_path: Path) -> None:
    groups = read(tmp_path, line(kind="maths", id=None), line(responses=[response(safety=None), response(text="x")]))
    assert groups.names == ("helpfulness", "safety")
    assert groups.lines[0].ratings("helpfulness") == [5, 1.5]
    assert groups.lines[1].ratings("safety") == [None, None]
    assert groups.notes == ["ignored fields: kind (1 lines)"]
    pair = groups.lines[0].pair(0, 1, 0.5)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.margin) == (GOOD["prompt"], "Four.", "Five.", 0.5)


def test_messages_and_a_prompt_of_turns_are_the_same_conversation(tmp_path: Path) -> None:
    rest = {"responses": GOOD["responses"]}
    groups = read(tmp_path, {"messages": TURNS} | rest, {"prompt": TURNS} | rest, {"prompt": "Hi"} | rest)
    assert len({each.prompt for each in groups.lines}) == 1
    pair = groups.lines[1].pair(1, 0, 0)
    assert pair.chosen_messages is not None
    assert [turn.content for turn in pair.chosen_messages] == ["Hi", "Five."]
    assert groups.digest != read(tmp_path, {"prompt": "Hi"} | rest).digest


def test_the_first_line_tells_groups_from_pairs(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "responses": ["b", "c"]}
    assert isinstance(read_data(write_lines(tmp_path / "pairs.jsonl", pair)), PairFile)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "line 2 has no responses, as the lines before it have; give"),
        ([1], "line 2 has no responses"),
        (line(prompt=None), "line 2 has neither prompt nor messages; give prompt or messages"),
        (line(messages=TURNS), "line 2 has both prompt and messages"),
        (line(prompt=TURNS, messages=TURNS), "line 2 has both prompt and messages"),
        (line(prompt=3), "line 2: prompt is 3: input should be a valid string; give"),
        (line(prompt=[{"role": "user"}]), "line 2: messages[0].content is missing; give"),
        (line(responses=[]), "line 2: responses is []: list should have at least 1 item"),
        (line(responses=["Four."]), "line 2: responses[0] is 'Four.'"),
        (line(responses=[response(text=None)]), "line 2: responses[0].text is None"),
        (line(responses=[response(), response(helpfulness=6)]), "responses[1] repeats responses[0]; take one out"),
        (line(responses=[{"text": "x"}]), "line 2: responses[0] has no rating; give at least one"),
        (line(responses=[response(safety=6)]), "line 2: responses[0].safety is 6; a rating is a number from 1 to 5"),
        (line(responses=[response(safety=0.9)]), "responses[0].safety is 0.9; a rating is"),
        (line(responses=[response(safety=True)]), "responses[0].safety is True; a rating is"),
        (
            line(responses=[response(model="mine")]),
            "responses[0].model is 'mine'; a rating is a number from 1 to 5, so",
        ),
        (line(responses=[response(Safety=3)]), "the name 'Safety' is invalid; use up to 32 lower-case letters"),
        (
            line(responses=[response(safty=5), response(text="x", helpfulness=1)]),
            "has the rating 'safty', by which no prompt has two responses that differ; correct its name (the others are",
        ),
    ],
)
def test_an_invalid_line_is_named(tmp_path: Path, second: Any, says: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        read(tmp_path, GOOD, second)
    message = str(raised.value)
    assert message.startswith(str(tmp_path / "groups.jsonl"))
    assert says in message
    assert "\n" not in message
