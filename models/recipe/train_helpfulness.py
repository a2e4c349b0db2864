"""Step 5b: the helpfulness model's last layer with the margin ranking loss -> `models/helpfulness`.

The first layers stay frozen, so their output is computed once; the last layer starts as a comparator of prompt and response
and is trained in full, with the score:

    L = weighted mean over pairs of -log sigmoid(r_c - r_r - m(rating)),   m: Llama 2's small margins

The frozen layers run in bf16 where the CPU has bf16 products, and so do the keys and values of the last one: a tenth of the
time with AMX, and the shipped fp16 checkpoint is evaluated in fp32.

    python -m models.recipe.train_helpfulness
"""

# ruff: noqa: S311 - draws are to be reproducible, not secret

import json
import math
import random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from models.recipe.common import (
    SEED,
    WORK,
    encode,
    fast_products,
    load_tokenizer,
    load_trunk,
    num_threads,
    read_jsonl,
    save_checkpoint,
)
from models.recipe.comparator import initialise, score_last_position
from models.recipe.trunk_states import last_layer_inputs

MARGIN = {"significantly_better": 1.0, "better": 2 / 3, "slightly_better": 1 / 3, "negligibly_better": 0.0}
WEIGHT = {"near": 1.2, "random": 1.2, "repeat": 2.0, "garble": 0.7}  # of a kind's pairs in the loss, else 1
NUM_EPOCHS, BATCH_PAIRS = 2, 32
LEARNING_RATE, WEIGHT_DECAY, NUM_WARMUP = 2e-4, 0.05, 50
MAX_PROMPT, MAX_RESPONSE = 96, 192
# The training pairs are fitted too surely; halved, the loss on a validation quarter falls from 0.27 to 0.26.
TEMPERATURE = 2.0


def trunk_states(pairs: list[dict[str, Any]], model: Any) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """The fp16 states of every distinct (prompt, response), and each pair's two indices into them."""
    place: dict[tuple[str, str], int] = {}
    indices = [
        (
            place.setdefault((p["prompt"], p["chosen"]), len(place)),
            place.setdefault((p["prompt"], p["rejected"]), len(place)),
        )
        for p in pairs
    ]
    tokenizer = load_tokenizer()
    sequences = [encode(tokenizer, prompt, response, MAX_PROMPT, MAX_RESPONSE) for prompt, response in place]
    states = [torch.empty(0)] * len(sequences)
    with fast_products():
        for index, tokens in last_layer_inputs(model, sequences, "helpfulness states"):
            states[index] = tokens.half()
    return states, indices


def similar_length_batches(lengths: list[int], rng: random.Random) -> list[list[int]]:
    """Shuffled batches of BATCH_PAIRS indices, each sorted out of 16 batches' worth so that little of it is padding."""
    order = rng.sample(range(len(lengths)), len(lengths))
    batches = []
    for begin in range(0, len(order), 16 * BATCH_PAIRS):
        block = sorted(order[begin : begin + 16 * BATCH_PAIRS], key=lengths.__getitem__)
        batches += [block[i : i + BATCH_PAIRS] for i in range(0, len(block) - BATCH_PAIRS + 1, BATCH_PAIRS)]
    rng.shuffle(batches)
    return batches


def rate(step: int, num_steps: int) -> float:
    """Learning rate: linear warm-up, then a half cosine to zero."""
    return LEARNING_RATE * min(1.0, (step + 1) / NUM_WARMUP) * (0.5 + 0.5 * math.cos(math.pi * step / num_steps))


def train(
    model: Any, states: list[Tensor], indices: list[tuple[int, int]], pairs: list[dict[str, Any]], rng: random.Random
) -> list[float]:
    """Train the last layer and the score in place; the loss of every step."""
    margins = torch.tensor([MARGIN[p["rating"]] for p in pairs])
    weights = torch.tensor([WEIGHT.get(p["kind"], 1.0) for p in pairs])
    longest = [max(len(states[i]) for i in both) for both in indices]
    parameters = [*model.model.layers[-1].parameters(), model.model.norm.weight, model.score.weight]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    per_epoch = len(pairs) // BATCH_PAIRS
    losses: list[float] = []
    with tqdm(total=NUM_EPOCHS * per_epoch, desc="helpfulness", unit="step") as progress:
        for _ in range(NUM_EPOCHS):
            for batch in similar_length_batches(longest, rng):
                sides = [indices[i][side] for side in (0, 1) for i in batch]
                lengths = torch.tensor([len(states[i]) for i in sides])
                padded = pad_sequence([states[i] for i in sides], batch_first=True).float()
                score = score_last_position(model, padded, lengths)
                each = softplus(-(score[:BATCH_PAIRS] - score[BATCH_PAIRS:] - margins[batch]))
                loss: Any = (each * weights[batch]).sum() / weights[batch].sum()
                for group in optimizer.param_groups:
                    group["lr"] = rate(len(losses), NUM_EPOCHS * per_epoch)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                losses.append(float(loss.detach()))
                progress.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}")
                progress.update()
    return losses


def main() -> None:
    torch.set_num_threads(num_threads())
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    pairs = [pair for pair in read_jsonl(WORK / "helpfulness_pairs.jsonl") if not pair["held_out"]]
    model, quiet = load_trunk("trunk_roles")
    states, indices = trunk_states(pairs, model)
    answers = sorted({both[0] for both, pair in zip(indices, pairs, strict=True) if pair["kind"] != "truncated"})
    initialise(model, quiet, [states[i].float() for i in answers])
    losses = train(model, states, indices, pairs, rng)
    (WORK / "helpfulness_losses.json").write_text(json.dumps({"all": losses}))
    with torch.no_grad():
        model.score.weight.div_(TEMPERATURE)
    folder = save_checkpoint(model, "helpfulness")
    print(f"{folder}: loss {sum(losses[:50]) / 50:.3f} -> {sum(losses[-50:]) / 50:.3f}")


if __name__ == "__main__":
    main()
