"""Callbacks of a training run: evaluation on the held-out pairs, and progress."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.reward_trainer import DataCollatorForPreference
from typing_extensions import override

from app.rewards.ranking import margin_ranking_loss
from app.training.encoding import Example

Row = dict[str, Any]


def row(example: Example) -> Row:
    """The example as a row of TRL's preference data sets, already tokenized."""
    return {
        "chosen_ids": example.chosen.token_ids.tolist(),
        "rejected_ids": example.rejected.token_ids.tolist(),
        "margin": example.margin,
    }


class HeldOut(TrainerCallback):
    """Evaluates loss with margin and accuracy on the held-out pairs: before the first step and after every epoch.

    The figures go into the state's log, which checkpoints store and a resumed run continues. transformers' own evaluation
    cannot replace this: it runs at the end of an epoch after that step's checkpoint is saved, so a run resumed from that
    checkpoint would lack the figures; and TRL averages accuracy over batches, not over pairs, which differs where the last
    batch is smaller.
    """

    def __init__(self, examples: Sequence[Example], pad_token_id: int, batch_size: int) -> None:
        by_length = sorted(examples, key=lambda each: -each.chosen.num_tokens - each.rejected.num_tokens)
        rows = [row(example) for example in by_length]
        collate = DataCollatorForPreference(pad_token_id)
        self.batches = [collate(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self.evaluate(kwargs["model"], state)

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.epoch is not None and (state.epoch.is_integer() or state.global_step == state.max_steps):
            self.evaluate(kwargs["model"], state)

    def evaluate(self, model: Any, state: TrainerState) -> None:
        if self.batches:
            losses, hits = held_out_scores(model, self.batches)
            entry = {"held_out_loss": losses.mean().item(), "held_out_accuracy": hits.double().mean().item()}
            state.log_history.append({"epoch": state.epoch or 0.0, "step": state.global_step, **entry})


def held_out_scores(model: Any, batches: list[Row]) -> tuple[Tensor, Tensor]:
    """(loss with margin, whether chosen scores higher), one element per pair."""
    was_training = model.training
    model.eval()
    losses, hits = [], []
    with torch.no_grad():
        for batch in batches:
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
            scores = model(**inputs, use_cache=False).logits[:, 0].double().cpu()
            chosen, rejected = scores.chunk(2)
            with np.errstate(invalid="ignore"):  # NaN scores; the next step's loss reports them
                loss = margin_ranking_loss(chosen.numpy(), rejected.numpy(), batch["margin"].double().numpy())
            losses.append(torch.from_numpy(loss))
            hits.append(chosen > rejected)
    model.train(was_training)
    return torch.cat(losses), torch.cat(hits)


def progress_callback() -> TrainerCallback:
    """A progress bar if standard error is a terminal; elsewhere one line per checkpoint."""
    return ProgressBar() if sys.stderr.isatty() else CheckpointLines()


class ProgressBar(ProgressCallback):
    """transformers' progress bar, which shows the loss instead of printing a line for every logged step."""

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs and self.training_bar is not None:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)


class CheckpointLines(TrainerCallback):
    """Writes one line to standard error whenever a checkpoint is saved."""

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        words = f", loss {loss:.4f}" if loss is not None else ""
        sys.stderr.write(f"step {state.global_step} of {state.max_steps}{words}, checkpoint saved\n")
        sys.stderr.flush()
