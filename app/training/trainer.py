"""TRL's RewardTrainer on token ids: its loss is the mean of `loss_with_margin` over a batch.

This module reads no files and no texts. TRL's telemetry and model cards are off.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import RewardConfig, RewardTrainer

from app.errors import TrainingError
from app.training.callbacks import HeldOut, progress_callback, row
from app.training.encoding import Example

Row = dict[str, Any]


class PairTrainer(RewardTrainer):  # type: ignore[misc]  # untyped
    """Raises TrainingError when the loss is NaN or infinite."""

    def __init__(
        self,
        model: Any,
        args: RewardConfig,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=Dataset.from_list([row(example) for example in examples]),
            processing_class=tokenizer,
            callbacks=[
                HeldOut(held_out, tokenizer.pad_token_id, args.per_device_train_batch_size),
                progress_callback(),
            ],
        )
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: Any, inputs: Row, *args: Any, **options: Any) -> Any:
        outcome = super().compute_loss(model, inputs, *args, **options)
        loss = outcome[0] if isinstance(outcome, tuple) else outcome
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, where the learning rate is "
                f"{self.lr_scheduler.get_last_lr()[0]:.2g}; try a lower --lr, in a new directory"
            )
        return outcome

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Writes no model card: the checkpoints are deleted when the run ends."""

    def _send_telemetry(self) -> None:
        """Sends nothing."""
