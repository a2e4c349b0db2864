"""docs/reliability.md names tests and benchmarks that exist."""

import re

import pytest

from tests.processes import ROOT

TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|benchmarks|app)/[\w/]+\.\w+)`", TEXT))))
def test_a_file_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`python -m benchmarks ([\w-]+)`", TEXT))))
def test_a_benchmark_that_is_named_is_a_command(command: str) -> None:
    assert f'case "{command}"' in (ROOT / "benchmarks" / "commands.py").read_text(encoding="utf-8")


def test_each_reported_fault_names_a_test() -> None:
    table = TEXT.partition("## Faults that users of other services reported")[2]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) == 19
    assert all(len(row) == 4 and "`tests/" in row[2] for row in rows)
