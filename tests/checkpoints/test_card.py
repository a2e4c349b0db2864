from pathlib import Path

import pytest

from app.checkpoints.card import CARD_NAME, tags_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("---\ntags: [demo, small]\n---\n# A model\n", ("demo", "small")),
        ("---\nlicense: mit\n---\n", ()),
        ("# No front matter\n", ()),
        ("---\ntags: [unclosed\n---\n", ()),
    ],
)
def test_the_tags_are_the_front_matters(tmp_path: Path, text: str, tags: tuple[str, ...]) -> None:
    card = tmp_path / CARD_NAME
    card.write_text(text, encoding="utf-8")
    assert tags_of(card) == tags


def test_a_checkpoint_without_a_card_has_none() -> None:
    assert tags_of(None) == ()


@pytest.mark.parametrize("role", ["safety", "helpfulness"])
def test_the_models_that_come_along_are_marked_as_a_demonstration(role: str) -> None:
    assert "demo" in tags_of(ROOT / "models" / role / CARD_NAME)
