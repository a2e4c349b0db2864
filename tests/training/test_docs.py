"""The page docs/training.md: every command on it is run, in order, and prints what stands below it but for the numbers."""

import re
import shlex
from pathlib import Path

import pytest

from app.cli import main
from tests.models import make_language_model

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?|(?<= )-(?= |$)")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[list[str], list[str]]]:
    """The words of each command, and the lines that are printed below it."""
    found = []
    for block in blocks("console"):
        for prompt in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *printed = prompt.splitlines()
            found.append((shlex.split(command), printed))
    return found


def shape(line: str) -> list[str]:
    return NUMBER.sub("#", line).split()


def test_the_pages_commands_print_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_language_model(tmp_path / "my-base")
    for name, text in re.findall(r"^`(\S+\.jsonl)`:\n\n```jsonl\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    (install, _), *ours = commands()
    assert install == ["pip", "install", ".[train]"]
    assert {words[1] for words, _ in ours} == {"train", "evaluate"}
    for words, printed in ours:
        assert words[0] == "reward-service"
        assert main(words[1:]) == 0, capsys.readouterr().err
        captured = capsys.readouterr()
        got = (captured.out + captured.err).splitlines()
        for line in printed[: printed.index("...") if "..." in printed else None]:
            assert shape(line) in [shape(own) for own in got], (line, got)
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")


def test_every_option_that_the_page_names_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    helps = ""
    for command in ("train", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        helps += capsys.readouterr().out
    for option in set(re.findall(r"`(--[a-z-]+)", PAGE)):
        assert f"{option} " in helps or f"{option}\n" in helps, option
