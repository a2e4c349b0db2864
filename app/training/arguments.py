"""The flags of `reward-service train` and `reward-service evaluate`. Imports nothing slow, because every command's help reads it."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from app.files.flags import count, fraction, positive, positive_count, seed
from app.training.options import FULL_LEARNING_RATE, LORA_LEARNING_RATE, MAX_BATCH_TOKENS, TrainOptions

MOST_EPOCHS = 10_000
HIGHEST_RATE = 1e30
"""A step of AdamW beyond it overflows float32."""


def add_train(commands: Any) -> argparse.ArgumentParser:
    """Options that are not given are absent from the namespace, so the defaults of TrainOptions apply."""
    command: argparse.ArgumentParser = commands.add_parser(
        "train", help="train a reward model on preference pairs or rated groups", argument_default=argparse.SUPPRESS
    )
    command.add_argument("--base", type=Path, required=True, help="a directory with a language model or a reward model")
    command.add_argument(
        "--data",
        required=True,
        help="pairs, one JSON object per line, as in POST /compare; or rated groups, a prompt with its rated responses per line "
        "(docs/training.md); - for stdin",
    )
    command.add_argument("--out", type=Path, required=True, help="a new directory for the trained reward model")
    command.add_argument("--resume", action="store_true", help="continue the interrupted run in OUT")
    data = command.add_argument_group("data")
    data.add_argument(
        "--margin-scheme",
        choices=("large", "small"),
        help="margins by rating, or by the difference of two ratings: large 3, 2, 1, 0 (default); small 1, 2/3, 1/3, 0",
    )
    data.add_argument(
        "--max-length", type=positive_count, help="maximum tokens per conversation (default: the base's limit)"
    )
    data.add_argument(
        "--truncation",
        choices=("drop", "error", "prompt", "left", "right"),
        help="what to do with a pair over the limit: drop it and report it (default), or as in POST /compare",
    )
    data.add_argument(
        "--held-out",
        type=fraction,
        help="share of the pairs held out for evaluation, by whole prompts; 0 for none (default 0.1)",
    )
    weights = command.add_argument_group("weights")
    weights.add_argument(
        "--freeze-layers", type=count, help="freeze the embeddings and the first N layers (default 0: nothing)"
    )
    weights.add_argument(
        "--lora-rank", type=count, help="train adapters of this rank and the head; 0 for all weights (default)"
    )
    weights.add_argument(
        "--lora-alpha",
        type=positive_count,
        help="LoRA alpha; the adapters are scaled by alpha / rank (default: twice the rank)",
    )
    steps = command.add_argument_group("training")
    steps.add_argument(
        "--epochs", type=positive(MOST_EPOCHS), help="passes over the pairs (default 1; more overfit quickly)"
    )
    steps.add_argument(
        "--lr",
        dest="learning_rate",
        type=positive(HIGHEST_RATE),
        help=f"highest learning rate (default {FULL_LEARNING_RATE:g}, with LoRA {LORA_LEARNING_RATE:g})",
    )
    steps.add_argument("--batch-size", type=positive_count, help="pairs per batch (default 16)")
    steps.add_argument("--accumulate", type=positive_count, help="batches per step (default 1)")
    steps.add_argument("--gradient-checkpointing", action="store_true", help="uses less memory and a third more time")
    steps.add_argument(
        "--seed", type=seed, help="seed of the new head, the adapters, the split and the order (default 0)"
    )
    steps.add_argument("--device", choices=("auto", "cpu"), help="auto (default) uses a GPU if there is one")
    steps.add_argument(
        "--save-steps",
        type=positive_count,
        help="steps between checkpoints to resume from (default: ten checkpoints per run)",
    )
    add_rated(command)
    return command


def add_rated(command: argparse.ArgumentParser) -> None:
    rated = command.add_argument_group(
        "rated groups", "A model per rating, trained together; they need --lora-rank and best --freeze-layers."
    )
    rated.add_argument(
        "--pointwise",
        metavar="RATING",
        help="add each response's cross-entropy: sigmoid(score) against harmless (rated 4 or more) or harmful (2 or less)",
    )
    rated.add_argument(
        "--rank-across-prompts",
        metavar="RATING",
        help="add the ranking of a batch's harmful responses below its harmless ones, whatever their prompts",
    )
    rated.add_argument(
        "--head-lr",
        dest="head_learning_rate",
        type=positive(HIGHEST_RATE),
        help="highest learning rate of the heads (default: --lr)",
    )
    rated.add_argument(
        "--max-batch-tokens",
        type=positive_count,
        help=f"maximum tokens per batch, padding included, in place of --batch-size (default {MAX_BATCH_TOKENS})",
    )
    rated.add_argument(
        "--adapter-only",
        action="store_true",
        help="save OUT/RATING as an adapter and a head on the shared base, not merged into it",
    )


def train_options(options: argparse.Namespace) -> TrainOptions:
    names = {field.name for field in fields(TrainOptions)}
    return TrainOptions(**{name: value for name, value in vars(options).items() if name in names})


def add_evaluate(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "evaluate", help="evaluate a reward model on preference pairs, such as RewardBench's"
    )
    command.add_argument(
        "file", help="pairs, one JSON object per line, as in POST /compare or RewardBench; - for stdin"
    )
    add_comparison(command)
    add_truncation(command)
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    command.add_argument("--png", type=Path, metavar="FILE", help="write the figures as a picture")
    return command


def add_comparison(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        default="helpfulness",
        help="the name of the model that compares (default: helpfulness)",
    )
    command.add_argument(
        "--margin-scheme",
        choices=("large", "small"),
        default="large",
        help="margins by rating: large 3, 2, 1, 0; small 1, 2/3, 1/3, 0 (default: large)",
    )


def add_truncation(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--truncation",
        choices=("error", "prompt", "left", "right"),
        default="error",
        help="inputs over the model's limit: error ends the run; prompt drops the oldest tokens of the prompt; left and "
        "right drop tokens of the whole input (default: error)",
    )
