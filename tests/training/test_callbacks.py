"""Progress: a bar with the loss on a terminal, one line per checkpoint elsewhere."""

import sys
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from app.training.callbacks import CheckpointLines, ProgressBar, progress_callback

NO_ARGUMENTS: Any = None


def run_two_steps(callback: Any) -> None:
    state, control = TrainerState(max_steps=2), TrainerControl()
    callback.on_train_begin(NO_ARGUMENTS, state, control)
    for step, loss in ((1, 0.75), (2, 0.5)):
        state.global_step = step
        state.log_history.append({"loss": loss, "step": step})
        callback.on_log(NO_ARGUMENTS, state, control, logs={"loss": loss})
        callback.on_step_end(NO_ARGUMENTS, state, control)
    callback.on_save(NO_ARGUMENTS, state, control)
    callback.on_train_end(NO_ARGUMENTS, state, control)


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, ProgressBar), (False, CheckpointLines)])
def test_a_terminal_gets_the_bar(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, kind: type) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert type(progress_callback()) is kind


def test_the_bar_shows_the_loss_and_prints_no_line_per_step(capfd: pytest.CaptureFixture[str]) -> None:
    run_two_steps(ProgressBar())
    shown = capfd.readouterr()
    assert "2/2" in shown.err
    assert "loss=0.5000" in shown.err
    assert "{" not in shown.err + shown.out


def test_elsewhere_a_checkpoint_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    run_two_steps(CheckpointLines())
    assert capfd.readouterr() == ("", "step 2 of 2, loss 0.5000, checkpoint saved\n")
