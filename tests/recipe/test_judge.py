"""Figures of held-out responses: pairs, intervals, vetoes under a calibration, and their place in a card."""

import math

import pytest

from models.recipe.folds import fold_of, is_held_out, unseen_kinds
from models.recipe.groups import Group, Response
from models.recipe.judge import (
    VETO,
    Calibration,
    Scored,
    Share,
    accuracy,
    calibrate,
    safety_scores,
    vetoes,
    worst_pairs,
)
from models.recipe.preferences import pairs_of
from models.recipe.report import table, with_figures, wrong_examples
from models.recipe.words import fit_words

TURNS = (("user", "?"),)


def group(*ratings: float, kind: str = "a", prompt: str = "?") -> Group:
    responses = tuple(Response(f"text {rating}", safety=rating, helpfulness=rating) for rating in ratings)
    return Group(kind, (("user", prompt),), responses)


def scored(scores: list[float], *ratings: float, fold: str = "0") -> Scored:
    return Scored(group(*ratings), {"safety": scores, "helpfulness": scores}, fold)


def test_accuracy_counts_pairs_whose_better_response_is_strictly_ahead() -> None:
    judged = [scored([2, 1, 1], 5, 3, 1), scored([0, 1], 4, 2)]
    share = accuracy(judged, "safety", lambda each: each.scores["safety"])
    assert (share.hits, share.count) == (2, 4)
    ((pair, difference),) = worst_pairs(judged, "safety", 1)
    assert (pair.texts, difference) == (("text 4", "text 2"), -1)


def test_wilsons_interval() -> None:
    low, high = Share(8, 10).interval
    assert [low, high] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert all(math.isnan(value) for value in Share(0, 0).interval)


def test_calibration_leaves_few_harmless_responses_below_the_threshold() -> None:
    harmless = [scored([value / 10], 5) for value in range(100)]
    harmful = [scored([-value / 10], 1) for value in range(1, 100)]
    calibration = calibrate([*harmless, *harmful])
    assert calibration.scale > 0
    shares = vetoes([*harmless, *harmful], {"0": calibration})
    assert shares["harmless"].value <= 0.04
    assert shares["harmful"].value == 1
    assert sum(calibration(score) < VETO for score in safety_scores(harmless, lambda rating: rating >= 5)) >= 2


def test_every_fold_is_vetoed_under_its_own_calibration() -> None:
    judged = [scored([0.0], 5, fold="0"), scored([0.0], 5, fold="1")]
    calibrations = {"0": Calibration(1, 0), "1": Calibration(1, VETO - 1)}
    assert vetoes(judged, calibrations)["harmless"].hits == 1


def test_folds_are_by_prompt_and_three_kinds_are_never_seen() -> None:
    groups = [group(5, 1, kind=kind, prompt=f"{kind} {n}") for kind in "abcdef" for n in range(20)]
    unseen = unseen_kinds(groups)
    assert len(unseen) == 3
    held = [[fold for fold in range(5) if is_held_out(str(fold), each, unseen)] for each in groups]
    assert all(folds in ([fold_of(each)], [0, fold_of(each)]) for folds, each in zip(held, groups, strict=True))
    assert {each.kind for folds, each in zip(held, groups, strict=True) if folds[0] == 0 < fold_of(each)} == set(unseen)
    assert all(is_held_out("0", each, unseen) for each in groups if each.kind in unseen)
    assert not any(is_held_out("all", each, unseen) for each in groups)
    assert fold_of(group(5, 1, kind="x")) == fold_of(group(4, 2, kind="y"))


def test_a_bag_of_words_learns_words_and_nothing_of_the_prompt() -> None:
    groups = [
        Group("a", TURNS, (Response(f"a kind word {n}", helpfulness=5), Response(f"a rude word {n}", helpfulness=1)))
        for n in range(20)
    ]
    ((kind, rude),) = fit_words(list(pairs_of(groups, "helpfulness")), [groups[0]])
    assert kind > rude


def test_figures_go_between_their_marks() -> None:
    row = {"title": "all kinds", "value": 0.8, "low": 0.7, "high": 0.9, "count": 10, "words": None, "longer": 0.5}
    figures = table("safety", [row])
    assert figures.splitlines()[2] == "| all kinds | 0.800 | 0.700 to 0.900 |  | 0.500 | 10 |"
    text = with_figures("x\n<!-- figures: safety -->\nold\n<!-- end -->\ny", "safety", figures)
    assert figures in text
    assert "old" not in text
    with pytest.raises(ValueError, match="no place for the figures of helpfulness"):
        with_figures("x", "helpfulness", figures)


def test_wrong_examples_stay_in_their_cells() -> None:
    entry = {"kind": "a", "prompt": "one\ntwo | three", "better": "<b>" + "x" * 200, "worse": "y", "difference": -1.5}
    line = wrong_examples([entry]).splitlines()[-1]
    assert line.startswith("| a | one two \\| three | &lt;b>xxx")
    assert line.endswith("... | y | 1.50 |")
