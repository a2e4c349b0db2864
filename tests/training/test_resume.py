"""A run that is killed with -9 goes on from its last whole checkpoint and ends with the same weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models import make_model
from tests.processes import running
from tests.training.kindness import kind_pairs, read, train, write_lines

DIES = """
import os, signal, sys
from app.cli import main
write = sys.stderr.write
def write_and_die(text):
    write(text)
    if "checkpoint saved" in text:
        os.kill(os.getpid(), signal.SIGKILL)
sys.stderr.write = write_and_die
sys.exit(main())
"""
"""The command, which is killed as soon as it has said that a checkpoint is saved: a killer of another process may come too late."""
OPTIONS = ["--lr", "1e-3", "--batch-size", "4", "--epochs", "3", "--save-steps", "4"]
TRAIN = [sys.executable, "-c", DIES, "train", "--device", "cpu"]


@pytest.mark.parametrize("kind", [[], ["--lora-rank", "4", "--freeze-layers", "1"]], ids=["whole", "lora"])
def test_a_killed_run_resumes_to_the_weights_of_one_that_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: list[str]
) -> None:
    base, data = make_model(tmp_path / "base", seed=3), write_lines(tmp_path / "pairs.jsonl", *kind_pairs(26))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    words = ["--base", str(base), "--data", data, "--out", str(killed), *OPTIONS, *kind]
    with running([*TRAIN, *words], stderr=subprocess.PIPE) as process:
        said = process.communicate(timeout=300)[1]
    assert process.returncode == -9, said
    assert said.splitlines()[-1].startswith("step 4 of "), said

    torn = killed / "checkpoints" / "checkpoint-900"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": 900, "epo')

    assert train(base, data, killed, *OPTIONS, *kind) == 1
    assert "is not empty; give a new directory, or --resume" in capsys.readouterr().err
    assert train(base, data, killed, *OPTIONS, *kind, "--seed", "1", "--resume") == 1
    assert "seed was 0, not 1" in capsys.readouterr().err
    other = write_lines(tmp_path / "other.jsonl", *kind_pairs(26, seed=1))
    assert train(base, other, killed, *OPTIONS, *kind, "--resume") == 1
    assert "the data differ" in capsys.readouterr().err

    assert train(base, data, killed, *OPTIONS, *kind, "--resume") == 0
    resumed = capsys.readouterr().err
    assert "step 4 of" not in resumed
    assert train(base, data, whole, *OPTIONS, *kind) == 0
    first, second = load_file(killed / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    curves = [read(out / "loss.json") for out in (killed, whole)]
    assert curves[0] == curves[1]
    assert [entry["epoch"] for entry in curves[0]["held_out"]] == [0, 1, 2, 3]

    assert train(base, data, killed, *OPTIONS, *kind, "--resume") == 1
    assert "has ended; there is nothing to resume" in capsys.readouterr().err
