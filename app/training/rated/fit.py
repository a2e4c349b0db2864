"""The optimisation: AdamW over batches of rated groups, whose states behind the frozen layers are there already."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from app.errors import TrainingError
from app.training.rated.losses import Objective, Ratings
from app.training.rated.model import RatedModel
from app.training.rated.packed import Row, batches_by_length

WEIGHT_DECAY, MAX_GRADIENT_NORM = 0.01, 1.0
CHUNK = 256
"""Rows of a shuffled order that are sorted by length together, so that a batch has little padding."""


@dataclass(frozen=True, slots=True)
class Example:
    """A group to train or to judge on."""

    row: Row
    states: Tensor  # (tokens, width), behind the frozen layers
    ratings: Ratings


@dataclass(frozen=True, slots=True)
class Schedule:
    """Rates rise linearly over the share `warmup` of the steps, then fall along a cosine to a tenth."""

    epochs: float
    learning_rate: float
    """The highest, of the adapter."""
    head_learning_rate: float
    warmup: float
    seed: int
    """Of the order of the groups."""


def ignore(_: int) -> None:
    pass


def fit(
    model: RatedModel,
    examples: Sequence[Example],
    objective: Objective,
    schedule: Schedule,
    after_epoch: Callable[[int], object] = ignore,
) -> list[dict[str, float]]:
    """Trains the adapter and the head; returns step, epoch, loss, accuracy and learning rate of every step.

    `accuracy` is left out of a step whose batch has no pair. `after_epoch` gets the number of steps until then, 0 before the
    first. Raises TrainingError where the loss is NaN or infinite.
    """
    rng = random.Random(schedule.seed)  # noqa: S311 - to be reproducible, not secret
    head = list(model.head.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": model.adapters, "lr": schedule.learning_rate},
            {"params": head, "lr": schedule.head_learning_rate},
        ],
        weight_decay=WEIGHT_DECAY,
    )
    epochs = batches_of_epochs([example.row for example in examples], schedule.epochs, model.max_batch_tokens, rng)
    num_steps = sum(map(len, epochs))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, num_steps, schedule.warmup))
    log: list[dict[str, float]] = []
    after_epoch(0)
    with tqdm(total=num_steps, desc="training", mininterval=10, disable=None) as bar:
        for epoch, batches in enumerate(epochs):
            model.net.train()
            share = min(1.0, schedule.epochs - epoch)
            for number, indices in enumerate(batches, 1):
                progress = {"step": len(log) + 1, "epoch": epoch + share * number / len(batches)}
                outcome = step(model, [examples[i] for i in indices], objective)
                log.append(progress | outcome | {"learning_rate": float(rates.get_last_lr()[0])})
                check_finite(log[-1])
                nn.utils.clip_grad_norm_([*model.adapters, *head], MAX_GRADIENT_NORM)
                optimizer.step()
                optimizer.zero_grad()
                rates.step()
                bar.update()
            after_epoch(len(log))
    return log


def step(model: RatedModel, batch: Sequence[Example], objective: Objective) -> dict[str, float]:
    """Adds the gradients of the batch's loss; returns loss and accuracy."""
    ratings = [example.ratings for example in batch]
    features = model.features([example.row for example in batch], [example.states for example in batch])
    scores = model.scores(features)
    loss = objective(scores, ratings)
    if loss.requires_grad:  # else the batch has no term
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    return {"loss": loss.item()} | accuracy_of(*objective.count_ranked(scores, ratings))


def accuracy_of(num_right: int, num_pairs: int) -> dict[str, float]:
    return {"accuracy": num_right / num_pairs} if num_pairs else {}


def check_finite(entry: dict[str, float]) -> None:
    if not math.isfinite(entry["loss"]):
        raise TrainingError(
            f"the loss is {entry['loss']} at step {entry['step']}, where the learning rate is "
            f"{entry['learning_rate']:.2g}; try a lower --lr, in a new directory"
        )


@torch.no_grad()
def figures_of(model: RatedModel, examples: Sequence[Example], objective: Objective) -> dict[str, float]:
    """Loss and accuracy of the examples, as if they were one batch."""
    ratings = [example.ratings for example in examples]
    features = model.features_of([example.row for example in examples], [example.states for example in examples])
    scores = model.scores(torch.cat(features))
    return {"loss": objective(scores, ratings).item()} | accuracy_of(*objective.count_ranked(scores, ratings))


def batches_of_epochs(rows: Sequence[Row], epochs: float, max_tokens: int, rng: random.Random) -> list[list[list[int]]]:
    """The batches of each epoch, as indices of rows; of the last one the share that is asked for."""
    found = [shuffled_batches(rows, max_tokens, rng) for _ in range(math.ceil(epochs))]
    share = epochs - (len(found) - 1)
    found[-1] = found[-1][: math.ceil(share * len(found[-1]))]
    return found


def shuffled_batches(rows: Sequence[Row], max_tokens: int, rng: random.Random) -> list[list[int]]:
    """Batches of similar lengths in random order, cut anew each time."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    batches = [
        [chunk[index] for index in batch]
        for chunk in chunks
        for batch in batches_by_length([rows[index] for index in chunk], max_tokens)
    ]
    rng.shuffle(batches)
    return batches


def rate_at(step: int, num_steps: int, warmup: float) -> float:
    """The share of the highest rate in this step, counted from 0."""
    num_warmup = max(1, round(warmup * num_steps))
    if step < num_warmup:
        return (step + 1) / num_warmup
    return 0.55 + 0.45 * math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup))
