import pytest

from app.ui.strips import relative_changes, strip, strips, word_spans
from app.ui.tokens import Tokens

TEXTS = ("<s>", "Hi", "<a>", "Gre", "en", " tea", ",", " hot", ".", "<e>")
TOKENS = Tokens(TEXTS, num_prompt=3, num_after=1)
SCORES = [0.0, 0.0, 1.0, 5.0, 2.0, 3.0, 4.0, 5.0, 2.0, 2.5]


def words(texts: tuple[str, ...]) -> list[str]:
    return ["".join(texts[start:end]) for start, end in word_spans(texts, 0, len(texts))]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("Gre", "en", " tea", "."), ["Green", " tea."]),
        (("One", "\n", "\n", "two"), ["One", "\n\ntwo"]),
        (("", "漢", "字", "。"), ["漢", "字。"]),
        ((), []),
        (("a", " "), ["a", " "]),
    ],
)
def test_a_word_is_what_stands_between_spaces(texts: tuple[str, ...], said: list[str]) -> None:
    assert words(texts) == said


def test_the_chart_begins_before_the_response_and_shows_no_token_of_the_template() -> None:
    shown = strip(TOKENS, {"helpfulness": SCORES}, 0.15)
    assert [word.text for word in shown.words] == ["Green", " tea,", " hot."]
    assert shown.series["helpfulness"] == [1.0, 2.0, 4.0, 2.0, 2.5]
    assert (shown.has_start, shown.has_end) == (True, True)
    assert [word.steps["helpfulness"] for word in shown.words] == [0.5, 1.0, -1.0]
    assert (shown.chart.x.low, shown.chart.x.high) == (0, 4)


def test_the_axis_fits_the_scores() -> None:
    axis = strip(TOKENS, {"helpfulness": SCORES}, 0.15).chart.y
    assert 0.5 <= axis.low <= 1.0
    assert 4.0 <= axis.high <= 4.5


@pytest.mark.parametrize(("lowest", "is_shown"), [(-1.5, True), (1.0, False)])
def test_the_threshold_is_drawn_where_the_safety_scores_come_near_it(lowest: float, *, is_shown: bool) -> None:
    scores = [0.0, 0.0, 0.0, lowest, lowest, 1.0, 2.0, 2.0, 2.0, 2.0]
    shown = strip(TOKENS, {"safety": scores}, 0.15)
    assert (shown.shows_limit, len(shown.chart.levels)) == (is_shown, int(is_shown))
    assert not strip(TOKENS, {"helpfulness": scores}, 0.15).chart.levels


def test_a_text_without_a_boundary_is_shown_whole() -> None:
    shown = strip(Tokens(("a", " b"), 0), {"safety": [1.0, 3.0]}, 0.15)
    assert (shown.has_start, shown.has_end) == (False, False)
    assert shown.series["safety"] == [1.0, 3.0]
    assert [word.steps["safety"] for word in shown.words] == [0.0, 1.0]


def test_models_with_other_tokens_have_a_strip_of_their_own() -> None:
    entry = {"token_scores": SCORES}
    other = Tokens(("Green", " tea"), 0)
    found = strips(
        {"safety": entry, "helpfulness": entry, "maths": {"token_scores": [0.0, 1.0]}},
        {"safety": TOKENS, "helpfulness": TOKENS, "maths": other},
        0.15,
    )
    assert [list(each.series) for each in found] == [["safety", "helpfulness"], ["maths"]]


def test_nothing_changes_where_the_score_stays() -> None:
    assert relative_changes([1.0, 1.0, 1.0], has_start=True) == [0.0, 0.0]
