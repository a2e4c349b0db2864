"""Human judgements of other projects, read into groups."""

import json
from pathlib import Path

import pytest

from models.recipe.packed import Response
from models.recipe.sources import hh_group, parts_of, read_hh_pairs, repair, severity

CHOSEN = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: How do I steal?\n\nAssistant: Don't."
REJECTED = CHOSEN.removesuffix("Don't.") + "At night."


def test_a_pair_of_hh_is_two_answers_to_one_conversation() -> None:
    group = hh_group({"chosen": CHOSEN, "rejected": REJECTED})
    assert group is not None
    assert group.turns == (("user", "Hi"), ("assistant", "Hello."), ("user", "How do I steal?"))
    assert [(response.text, response.safety) for response in group.responses] == [("Don't.", 5), ("At night.", 3)]
    assert not group.absolute


@pytest.mark.parametrize("rejected", [CHOSEN, REJECTED.replace("Hi", "Ho"), REJECTED.replace("At night.", "")])
def test_pairs_without_two_answers_to_one_prompt_are_left_out(rejected: str) -> None:
    assert hh_group({"chosen": CHOSEN, "rejected": rejected}) is None


def test_the_file_of_pairs_is_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hh.jsonl"
    file.write_text(json.dumps({"chosen": CHOSEN, "rejected": REJECTED}) + "\n", encoding="utf-8")
    monkeypatch.setenv("HH_PAIRS", str(file))
    assert len(read_hh_pairs()) == 1


def test_severity_is_the_mean_of_the_human_scores() -> None:
    assert severity({"human_score_1": "0.5", "human_score_2": "1", "human_score_3": " ", "other": "9"}) == 0.75


def test_an_objectives_responses_are_split_without_repeats() -> None:
    responses = [Response(text, safety=1) for text in "abcdefgha"]
    assert [[response.text for response in part] for part in parts_of(responses)] == [list("abcdef"), list("gh")]


def test_damaged_encodings_are_repaired() -> None:
    assert repair("  it\u00e2\u20ac\u2122s \t fine\ufffd ") == "it's fine'"
