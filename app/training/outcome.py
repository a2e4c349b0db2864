"""What a run leaves behind beside its record: the checkpoint's files, the loss curve, and the service's own verdict."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.checkpoints.building import head_of
from app.engine.devices import is_out_of_memory
from app.errors import InvalidInputError, ModelRefusedError, TrainingError
from app.files.output import share
from app.settings import Settings
from app.training.evaluation import Evaluation
from app.training.judge import compare
from app.training.options import TrainOptions
from app.training.pairs import PairLine


def save_checkpoint(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, out: Path) -> None:
    """Saves the model in the dtype with its head in float32, and the tokenizer."""
    trunk: Any = net.base_model
    trunk.to(dtype)
    _, head = head_of(net)
    head.float()
    net.save_pretrained(out)
    tokenizer.save_pretrained(out)
    share(out)


@contextmanager
def memory_remedy(remedy: str) -> Iterator[None]:
    """Raises TrainingError where memory is too short, with the remedy."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory; {remedy}") from error


def write_curve(out: Path, log: list[dict[str, Any]]) -> None:
    """Writes `loss.json` and `loss.png`."""
    from app.training.figures import draw_losses

    names = ("step", "epoch", "loss", "accuracy", "learning_rate")
    held_out = ("step", "epoch", "held_out_loss", "held_out_accuracy")
    curve = {
        "train": [{name: entry[name] for name in names if name in entry} for entry in log if "loss" in entry],
        "held_out": [
            {name.removeprefix("held_out_"): entry[name] for name in held_out if name in entry}
            for entry in log
            if "held_out_loss" in entry
        ],
    }
    (out / "loss.json").write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
    draw_losses(curve, out / "loss.png")


def judge(options: TrainOptions, checkpoint: Path, lines: list[PairLine], max_length: int) -> Evaluation:
    """Evaluates the saved checkpoint with the service, which also shows that it can be served."""
    settings = Settings(safety_model="", helpfulness_model=str(checkpoint), compat_model=None, max_length=max_length)
    try:
        return compare(
            options.data,
            lines,
            settings,
            model="helpfulness",
            margin_scheme=options.margin_scheme,
            truncation="error" if options.truncation == "drop" else options.truncation,
        )
    except (ModelRefusedError, InvalidInputError) as error:
        raise TrainingError(
            f"what was trained cannot be served: {error}; try a lower --lr, in a new directory"
        ) from error


def result_of(evaluation: Evaluation, rating: str | None = None) -> dict[str, Any]:
    """Prints the result on the held-out pairs, of a rating where there are several, and returns it for the run's record."""
    accuracy = evaluation.accuracy
    by = f" by {rating}" if rating is not None else ""
    tell(
        f"held out{by}, as the service scores it: accuracy {accuracy} of {accuracy.count} pairs, "
        f"loss {evaluation.loss:.4f}, with margin {evaluation.loss_with_margin:.4f}"
    )
    return {
        "accuracy": accuracy.to_dict(),
        "loss": evaluation.loss,
        "loss_with_margin": evaluation.loss_with_margin,
    }


def tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
