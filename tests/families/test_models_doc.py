"""docs/models.md says of every family what the code does; its declarations are those that the tests load."""

import re
from pathlib import Path

import pytest

from app.checkpoints.declaration import parse, preset_names
from app.checkpoints.text_parts import TEMPLATES
from tests.families.catalogue import FAMILIES
from tests.families.measure import TOLERANCE
from tests.families.table import COMPARED, DOCUMENT, FOUND, line, rows

TEXT = DOCUMENT.read_text(encoding="utf-8")
LINES = {found.split(" | ")[0].removeprefix("| "): found for found in TEXT.splitlines() if " | " in found}
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers


def test_every_family_has_a_row() -> None:
    assert {family.row for family in FAMILIES} == FOUND.keys() == COMPARED.keys()


@pytest.mark.parametrize("row", FOUND)
def test_a_row_says_what_is_loaded_in_the_tests(row: str, tmp_path: Path) -> None:
    families = rows()[row]
    declared = [family.build(tmp_path / str(i)).declared for i, family in enumerate(families)]
    difference = LINES[row].split(" | ")[3]
    assert float(difference) <= TOLERANCE
    assert LINES[row] == line(row, families, declared, difference).strip()


@pytest.mark.parametrize("block", re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL))
def test_a_declaration_is_ready_to_paste(block: str) -> None:
    parse("docs/models.md", block, "the block")


def test_presets_and_templates_are_all_named() -> None:
    templates = [each.name.removesuffix(".jinja") for each in TEMPLATES.iterdir()]
    assert [name for name in [*preset_names(), *templates] if f"`{name}`" not in TEXT] == []
