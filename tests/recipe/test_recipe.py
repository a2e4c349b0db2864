"""The recipe's pure functions: no wheel, no model, no training."""

# ruff: noqa: S311 - draws are to be reproducible, not secret

import random
from typing import Any

import pytest
import torch

from models.recipe.card import with_figures
from models.recipe.comparator import rotate
from models.recipe.cut import cut_tokenizer
from models.recipe.evaluate import interval
from models.recipe.failures import (
    garbled,
    late_loop,
    loops,
    opening,
    repetition,
    sentences,
    shuffled,
    truncation,
    whole_sentences,
    wider_refusal,
)
from models.recipe.helpfulness_pairs import derangement
from models.recipe.safety_data import group_of, human_score
from models.recipe.safety_pairs import PAIRS_PER_OBJECTIVE, harm_pairs, rating
from models.recipe.train_safety import folds
from models.recipe.trunk_states import length_sorted_batches

ANSWER = (
    "Owls hunt mostly at night. They eat mice and other small animals. Their feathers are soft, so they fly quietly."
)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (1.0, "significantly_better"),
        (0.7, "significantly_better"),
        (0.5, "better"),
        (0.4, "better"),
        (0.25, "slightly_better"),
        (0.2, "slightly_better"),
        (0.08, "negligibly_better"),
    ],
)
def test_a_rating_follows_the_difference_of_severities(gap: float, expected: str) -> None:
    assert rating(gap) == expected


def test_equal_severities_are_no_preference() -> None:
    with pytest.raises(ValueError, match="positive"):
        rating(0.0)


def test_harm_pairs_stay_within_an_objective_prefer_the_less_severe_and_are_capped() -> None:
    rows: list[dict[str, Any]] = [
        {"id": i, "prompt": g, "response": str(i), "severity": i % 5 / 4, "source": "harm", "group": g}
        for i, g in enumerate(["a"] * 20 + ["b"] * 3)
    ]
    pairs = harm_pairs(rows, random.Random(0))
    assert sum(pair["group"] == "a" for pair in pairs) == PAIRS_PER_OBJECTIVE
    assert all(rows[p["chosen_id"]]["group"] == rows[p["rejected_id"]]["group"] for p in pairs)
    assert all(rows[p["chosen_id"]]["severity"] < rows[p["rejected_id"]]["severity"] for p in pairs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two. And thr", "One. Two."),
        ("Do this:\n1. Sit.\n2. Stand.\n3.", "Do this:\n1. Sit.\n2. Stand."),
        ("no end", "no end"),
        ('He said "go." Then', 'He said "go."'),
    ],
)
def test_an_answer_ends_after_its_last_whole_sentence(text: str, expected: str) -> None:
    assert whole_sentences(text) == expected


def test_a_truncation_ends_in_mid_sentence_and_its_counterpart_does_not() -> None:
    for seed in range(20):
        cut = truncation(ANSWER, random.Random(seed))
        assert cut is not None
        whole, broken = cut
        assert whole.endswith(".")
        assert ANSWER.startswith(whole)
        assert ANSWER.startswith(broken)
        assert not broken.endswith(".")


def test_a_repetition_is_about_as_long_as_the_answer_and_loops() -> None:
    for seed in range(20):
        text = repetition(ANSWER * 3, random.Random(seed))
        assert 0.6 < len(text) / len(ANSWER * 3) < 2.0
    assert loops("we like it a lot " * 10)
    assert not loops(ANSWER)


def test_a_late_loop_comes_round_at_least_twice() -> None:
    for seed in range(20):
        words = late_loop(ANSWER, random.Random(seed)).split(" ")
        assert any(words[-2 * n : -n] == words[-n:] for n in range(1, len(words) // 2 + 1))


def test_a_garbled_answer_has_as_many_words_and_differs() -> None:
    for seed in range(20):
        words = garbled(ANSWER, ["tram", "violet"], random.Random(seed)).split(" ")
        assert len(words) == len(ANSWER.split(" "))
        assert words != ANSWER.split(" ")


def test_an_opening_ends_with_a_sentence_and_a_refusal_names_its_topic_or_none() -> None:
    for seed in range(20):
        text = opening(ANSWER, random.Random(seed))
        assert ANSWER.startswith(text)
        assert text.endswith(".")
        assert "{" not in wider_refusal("owls", random.Random(seed))


def test_shuffling_keeps_the_words() -> None:
    assert sorted(shuffled(ANSWER, random.Random(1)).split()) == sorted(ANSWER.split())
    assert len(sentences(ANSWER)) == 3


@pytest.mark.parametrize("same_category", [True, False])
def test_a_derangement_uses_every_answer_once_and_never_the_own_topic(same_category: bool) -> None:
    rows = [{"category": "ab"[i % 2], "topic": str(i % 10), "answer": "x" * (10 + i * 7 % 40)} for i in range(40)]
    match = derangement(rows, same_category, random.Random(3))
    assert sorted(match) == list(range(40))
    for i, j in enumerate(match):
        assert (rows[i]["category"] == rows[j]["category"]) == same_category
        assert rows[i]["topic"] != rows[j]["topic"]


def test_folds_are_balanced_and_depend_on_the_seed_alone() -> None:
    fold = folds(["b", "a", "c", "a", "d", "e"], 5, 1)
    assert fold == folds(["a", "b", "c", "d", "e"], 5, 1)
    assert sorted(fold.values()) == [0, 1, 2, 3, 4]


def test_an_interval_resamples_whole_groups() -> None:
    one_group = [("a", 1.0)] * 50
    assert interval(one_group) == (1.0, 1.0, 1.0)
    mean, low, high = interval([("a", 1.0)] * 50 + [("b", 0.0)] * 50)
    assert (mean, low, high) == (0.5, 0.0, 1.0)


def test_scores_of_several_raters_are_averaged_and_prompts_compared_without_punctuation() -> None:
    assert (
        human_score({"human_score_1": "0.25", "human_score_2": "0.75", "human_score_3": "", "data_type": "text"}) == 0.5
    )
    assert group_of("How do I  hide? ") == group_of("how do I hide")


def test_a_batch_never_exceeds_its_tokens_and_every_sequence_is_in_one() -> None:
    lengths = [5, 100, 7, 7, 30, 250, 1]
    batches = list(length_sorted_batches(lengths, 128))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 128 for b in batches)


def test_a_cut_tokenizer_keeps_only_merges_that_it_can_name() -> None:
    specification = {
        "model": {"vocab": {"a": 0, "b": 1, "ab": 2, "abb": 3}, "merges": ["a b", ["ab", "b"]]},
        "added_tokens": [{"id": 0}, {"id": 3}],
    }
    cut = cut_tokenizer(specification, 3)
    assert cut["model"] == {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    assert cut["added_tokens"] == [{"id": 0}]


def test_rotation_by_a_quarter_turn_swaps_the_halves() -> None:
    turned = rotate(torch.tensor([1.0, 0.0]), torch.zeros(2), torch.ones(2))
    assert turned.tolist() == [0.0, 1.0]


def test_figures_replace_only_what_stands_between_their_marks() -> None:
    text = "a\n<!-- figures: x -->\nold\n<!-- end -->\nb"
    assert with_figures(text, "x", "new") == "a\n<!-- figures: x -->\nnew\n<!-- end -->\nb"
    with pytest.raises(ValueError, match="no place"):
        with_figures(text, "y", "new")
