"""Every family of docs/models.md gives its authors' scores, and would not by a rule that is nearly theirs."""

from pathlib import Path

import pytest

from tests.families.catalogue import FAMILIES, Family
from tests.families.measure import TOLERANCE, measure
from tests.families.reference import Built

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Built:
    family: Family = request.param
    return family.build(tmp_path / "checkpoint")


def test_a_familys_texts_get_its_authors_tokens_and_scores(built: Built) -> None:
    measured = measure(built)
    assert [each.ids for each in measured] == [each.expected_ids for each in measured]
    assert max(each.difference for each in measured) <= TOLERANCE, measured
    if built.steps is not None:
        for each, conversation in zip(measured, built.conversations, strict=True):
            assert each.steps == pytest.approx(built.steps(conversation), abs=TOLERANCE), conversation
    for name, wrong in built.wrong.items():
        off = max(abs(wrong(each.expected_ids) - each.expected) for each in measured)
        assert off > 1e-2, f"the rule {name!r} gives nearly the same scores: this test could not fail by it"
