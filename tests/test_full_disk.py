"""A disk without room for the files that a command writes, as a limit on their size: one line, and no half model."""

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.cli import main
from app.files.output import is_full
from tests.models import make_language_model, make_tokenizer
from tests.training.kindness import kind_pairs, write_lines
from tests.training.rated.test_train import LORA, rated_groups


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """In each file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITES: dict[str, Callable[[Path], object]] = {
    "python": lambda directory: (directory / "a").write_bytes(b"a" * 10_000),
    "safetensors": lambda directory: save_file({"a": torch.ones(10_000)}, directory / "a"),
    "tokenizers": lambda directory: make_tokenizer().save_pretrained(directory),
    "torch": lambda directory: torch.save(torch.ones(10_000), directory / "a"),
}


@pytest.mark.parametrize("library", WRITES)
def test_every_librarys_error_is_known(tmp_path: Path, library: str) -> None:
    with room_for(5_000), pytest.raises(Exception) as raised:  # noqa: PT011 - of a class of each library's own
        WRITES[library](tmp_path)
    assert is_full(raised.value)


def test_other_errors_are_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(RuntimeError) as raised:
        torch.load(tmp_path / "a")
    assert not is_full(raised.value)
    assert not is_full(PermissionError(13, "Permission denied"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, the same as a pickle, pairs and rated groups."""
    directory = tmp_path_factory.mktemp("files")
    lm = make_language_model(directory / "lm")
    shutil.copytree(lm, directory / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(lm / "model.safetensors"), directory / "pickled" / "pytorch_model.bin")
    write_lines(directory / "pairs.jsonl", *kind_pairs(4))
    write_lines(directory / "groups.jsonl", *rated_groups(3))
    return directory


TRAIN = ["train", "--base", "lm", "--out", "out"]
COMMANDS = {
    "pairs": [*TRAIN, "--data", "pairs.jsonl"],
    "pairs, merged": [*TRAIN, "--data", "pairs.jsonl", *LORA],
    "groups": [*TRAIN, "--data", "groups.jsonl", *LORA],
    "groups, adapters": [*TRAIN, "--data", "groups.jsonl", "--lora-rank", "64", "--adapter-only"],
    "init": ["init", "--from-lm", "lm", "--out", "out"],
    "convert": ["convert", "pickled", "out"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_so_in_one_line_and_leaves_no_half_model(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for file in files.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    with room_for(100_000):
        assert main(COMMANDS[command]) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("reward-service: a file cannot be written (")
    assert said.endswith("; make room on its disk, or write to another\n")
    left = [tmp_path.rglob(name) for name in ("out/**/model.safetensors", "helpfulness", "safety", "*.partial")]
    assert [*chain(*left)] == []
