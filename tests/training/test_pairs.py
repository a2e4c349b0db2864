"""A file of pairs, in the forms that people have them in."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import InvalidInputError
from app.training.pairs import PairLine, read_pairs
from tests.training.kindness import write_lines

ASKED = [{"role": "user", "content": "Hi"}]
YES, NO = {"role": "assistant", "content": "Hello!"}, {"role": "assistant", "content": "Go."}


def read_one(tmp_path: Path, line: dict[str, Any]) -> PairLine:
    (read,) = read_pairs(write_lines(tmp_path / "pairs.jsonl", line)).lines
    return read


def test_strings_are_a_prompt_and_two_answers(tmp_path: Path) -> None:
    line = read_one(tmp_path, {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go.", "rating": "better"})
    assert json.loads(line.to_json()) == {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go.", "rating": "better"}
    assert line.responses == ("Hello!", "Go.")


@pytest.mark.parametrize(
    "fields",
    [
        {"chosen_messages": [*ASKED, YES], "rejected_messages": [*ASKED, NO]},
        {"messages": ASKED, "chosen": "Hello!", "rejected": "Go."},
        {"prompt": ASKED, "chosen": "Hello!", "rejected": "Go."},
        {"prompt": ASKED, "chosen": [YES], "rejected": [NO]},
        {"prompt": ASKED, "chosen": [*ASKED, YES], "rejected": [*ASKED, NO]},
        {"prompt": "Hi", "chosen": [*ASKED, YES], "rejected": [*ASKED, NO]},
        {"prompt": "Hi", "chosen": [YES], "rejected": [NO]},
        {"prompt": "Hi", "chosen": [YES], "rejected": "Go."},
        {"chosen": [*ASKED, YES], "rejected": [*ASKED, NO]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go.\n"},
    ],
)
def test_turns_in_every_form_are_the_same_conversations(tmp_path: Path, fields: dict[str, Any]) -> None:
    line = read_one(tmp_path, fields | {"margin": 0.5})
    assert json.loads(line.to_json()) == {
        "chosen_messages": [*ASKED, YES],
        "rejected_messages": [*ASKED, NO],
        "margin": 0.5,
    }
    assert line.responses == ("Hello!", "Go.")
    assert line.prompt == read_one(tmp_path, {"prompt": "Hi", "chosen": "a", "rejected": "b"}).prompt


def test_a_transcript_is_split_at_its_turns_and_must_end_with_an_answer(tmp_path: Path) -> None:
    asked = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Human: what?\n\nIs it?"
    line = read_one(tmp_path, {"chosen": f"{asked}\n\nAssistant: A.\n\nB.", "rejected": f"{asked}\n\nAssistant: C."})
    assert line.responses == ("A.\n\nB.", "C.")
    assert json.loads(line.prompt) == [["user", "Hi"], ["assistant", "Yes?"], ["user", "Human: what?\n\nIs it?"]]
    with pytest.raises(InvalidInputError, match="line 1: rejected is a transcript whose last turn is Human's"):
        read_one(tmp_path, {"chosen": f"{asked}\n\nAssistant: A.", "rejected": asked})


@pytest.mark.parametrize("side", ["\n\nHuman: Hi\n\nAssistant: Hello!", [*ASKED, YES]])
def test_a_text_beside_a_conversation_needs_a_prompt(tmp_path: Path, side: object) -> None:
    with pytest.raises(InvalidInputError, match="line 1: rejected is a text where the other side is a conversation"):
        read_one(tmp_path, {"chosen": side, "rejected": "Human: Hi"})


def test_a_line_of_rewardbench_reads_as_it_is_and_says_what_it_ignores(tmp_path: Path) -> None:
    line = {
        "prompt": "Hi",
        "chosen": "Hello!",
        "chosen_model": "gpt",
        "rejected": "Go.",
        "rejected_model": "llama",
        "subset": "alpacaeval-easy",
        "id": 3,
        "rating": None,
    }
    pairs = read_pairs(write_lines(tmp_path / "pairs.jsonl", line, line))
    assert [each.subset for each in pairs.lines] == ["alpacaeval-easy"] * 2
    assert pairs.notes == ["ignored fields: chosen_model (2 lines), id (2 lines), rejected_model (2 lines)"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "line 3 is not JSON"),
        (b"7", "line 3 is no object"),
        (b'{"prompt": "a", "chosen": "b"}', "line 3: has prompt, chosen; send prompt, chosen and rejected"),
        (b'{"prompt": "a", "chosen": "b", "rejected": 3}', "line 3: rejected is 3: input should be a valid string"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "c", "rating": "bad"}', "line 3: rating is 'bad'"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "c", "margin": NaN}', "line 3: margin is nan"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1}', "line 3: margin is -1"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "c", "ratings": "better"}', "did you mean rating?"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "c", "Margin": 1}', "did you mean margin?"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1, "rating": "better"}', "both rating and margin"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_is_safe": 1}', "must be true or false"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "c", "subset": 1}', "subset is 1"),
        (b'{"prompt": "a", "messages": [], "chosen": "b", "rejected": "c"}', "both prompt and messages"),
        (b'{"prompt": "a", "chosen": ["b"], "rejected": ["c", "d"]}', "give each answer a line"),
        (b'{"chosen": [{"role": "user", "content": "a"}], "rejected": []}', "line 3: rejected must be"),
        (
            b'{"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]}',
            "the last turn of chosen_messages is 'user'",
        ),
        (
            b'{"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}',
            "neither begins with the prompt's turns nor answers them",
        ),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: bytes, says: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n\n' + line + b"\n")
    with pytest.raises(InvalidInputError) as raised:
        read_pairs(str(file))
    assert str(raised.value).startswith(f"{file} line 3")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_equal_sides_are_seen_in_every_form(tmp_path: Path) -> None:
    assert read_one(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "b"}).is_same
    assert read_one(tmp_path, {"prompt": ASKED, "chosen": [YES], "rejected": "Hello!"}).is_same
    assert not read_one(tmp_path, {"prompt": ASKED, "chosen": [YES], "rejected": [NO]}).is_same
