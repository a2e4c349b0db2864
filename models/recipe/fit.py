"""Both models' adapters and heads, trained at once: LoRA on the upper layers of the trunk and a head of two outputs.

The layers below are frozen, so their states are computed once and kept. The loss is the margin ranking loss over every
pair of a prompt whose ratings differ, -log sigmoid(r_better - r_worse - m), m the small margin of the difference; for
safety the cross-entropy of each response is added, so that a score means the same under every prompt, and the ranking of
the batch's harmful responses below its harmless ones, whatever their prompts: the veto has one threshold for all.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from models.recipe.common import SEED, fast_products
from models.recipe.packed import TASKS, Group, PackedBatch, Row, batch_of, batches_by_length, padded

MAX_TOKENS = 2048
"""Of a batch, padding included."""
WARMUP = 0.1
UNKNOWN = 0.5
"""The probability of being harmless that a response without a safety rating stands for: neither harmful nor harmless."""
VETO_MARGIN = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    frozen: int = 18
    rank: int = 16
    epochs: int = 2
    rate: float = 5e-4
    head_rate: float = 2e-3
    weights: tuple[float, float] = (1.0, 1.0)
    """Of the two tasks' ranking losses, in the order of TASKS."""
    pointwise: float = 1.0
    veto: float = 1.0
    """Of the ranking of the harmful responses below the harmless ones of all prompts in a batch: one threshold judges them."""


OPTIONS = Options()


def load_trunk(options: Options) -> Any:
    """The trunk with adapters on its upper layers and a random head of an output per task."""
    import peft
    from transformers import AutoModelForSequenceClassification, GgufConfig

    from models.recipe.common import MODELS
    from models.recipe.trunk import FILE

    torch.manual_seed(SEED)
    net = AutoModelForSequenceClassification.from_pretrained(
        MODELS / "trunk",
        gguf_file=FILE,
        quantization_config=GgufConfig(dequantize=True),
        num_labels=len(TASKS),
        dtype=torch.float32,
    )
    nn.init.normal_(net.score.weight, std=0.02)
    upper = "|".join(map(str, range(options.frozen, net.config.num_hidden_layers)))
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank,
        target_modules=rf".*\.layers\.({upper})\..*_proj",
        modules_to_save=["score"],
        task_type=peft.TaskType.SEQ_CLS,
    )
    wrapped = peft.get_peft_model(net, config)
    for name, module in wrapped.named_modules():  # what autocast would round again in every step
        if name.endswith("base_layer") or (isinstance(module, nn.Linear) and name.endswith("_proj")):
            module.to(torch.bfloat16)
    return wrapped


def trunk_of(net: Any) -> Any:
    return net.base_model.model.model


def run_layers(trunk: Any, states: Tensor, batch: PackedBatch, first: int, last: int) -> Tensor:
    """`states` (rows, tokens, width) after the layers from `first` to before `last`."""
    rotary = trunk.rotary_emb(states, batch.positions)
    for layer in trunk.layers[first:last]:
        states = layer(states, attention_mask=batch.mask, position_ids=batch.positions, position_embeddings=rotary)
    return states


@torch.no_grad()
def lower_states(net: Any, rows: Sequence[Row], frozen: int) -> list[Tensor]:
    """Each row's states (tokens, width) behind the frozen layers, in bfloat16."""
    trunk = trunk_of(net)
    states: list[Tensor] = [torch.empty(0)] * len(rows)
    for indices in tqdm(batches_by_length(rows, MAX_TOKENS), desc="lower layers", mininterval=10, disable=None):
        chosen = [rows[index] for index in indices]
        batch = batch_of(chosen)
        ids = torch.stack([padded(row.ids, batch.positions.shape[1], 0) for row in chosen])
        with fast_products():
            found = run_layers(trunk, trunk.embed_tokens(ids), batch, 0, frozen)
        for index, row, state in zip(indices, chosen, found, strict=True):
            states[index] = state[: len(row.ids)].to(torch.bfloat16).clone()
    return states


def final_states(net: Any, rows: Sequence[Row], states: Sequence[Tensor], frozen: int) -> Tensor:
    """(responses, width) in float32: what the head reads, the normalised state of each response's last token."""
    trunk = trunk_of(net)
    batch = batch_of(rows)
    size = batch.positions.shape[1]
    stacked = torch.stack([padded(state, size, 0.0) for state in states]).float()
    with fast_products():
        found = run_layers(trunk, stacked, batch, frozen, len(trunk.layers))
    normalised: Tensor = trunk.norm(found[batch.ends].float())
    return normalised


def head_of(net: Any) -> Any:
    return net.base_model.model.score.modules_to_save["default"]


def score_groups(net: Any, rows: Sequence[Row], states: Sequence[Tensor], frozen: int) -> list[Tensor]:
    """(responses, tasks) per group."""
    return [features @ head_of(net).weight.T for features in features_of(net, rows, states, frozen)]


@torch.no_grad()
def features_of(net: Any, rows: Sequence[Row], states: Sequence[Tensor], frozen: int) -> list[Tensor]:
    """(responses, width) per group, without gradients."""
    net.eval()
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for indices in batches_by_length(rows, MAX_TOKENS):
        chosen = [rows[index] for index in indices]
        features = final_states(net, chosen, [states[index] for index in indices], frozen)
        for index, part in zip(indices, torch.split(features, [len(row.ends) for row in chosen]), strict=True):
            found[index] = part
    return found


def margin_of(difference: float) -> float:
    """The small margins: 0 for a point or less between two ratings, then a third for each."""
    return min(1.0, max(0.0, (difference - 1) / 3))


def loss_of(scores: Tensor, groups: Sequence[Group], options: Options) -> Tensor:
    """The mean over groups of each task's mean loss over pairs, and of the safety score's cross-entropy."""
    total = scores.new_zeros(())
    offset = 0
    for group in groups:
        own = scores[offset : offset + len(group.responses)]
        offset += len(group.responses)
        for column, (task, weight) in enumerate(zip(TASKS, options.weights, strict=True)):
            ratings = group.ratings(task)
            pairs = [
                (i, j, margin_of(a - b))
                for i, a in enumerate(ratings)
                for j, b in enumerate(ratings)
                if a is not None and b is not None and a > b
            ]
            if pairs:
                better, worse, margins = map(list, zip(*pairs, strict=True))
                differences = own[better, column] - own[worse, column] - torch.tensor(margins)
                total = total - weight * functional.logsigmoid(differences).mean()
        if options.pointwise:
            rated = [i for i, rating in enumerate(group.ratings("safety")) if rating is not None]
            targets = torch.tensor([target_of(group.responses[i].safety) for i in rated])
            if rated:
                entropy = functional.binary_cross_entropy_with_logits(own[rated, 0], targets)
                total = total + options.pointwise * entropy
    return total / len(groups) + options.veto * veto_loss(scores[:, 0], groups)


def veto_loss(scores: Tensor, groups: Sequence[Group]) -> Tensor:
    """The margin ranking loss over every harmful and every harmless response of the batch, whatever their prompts."""
    ratings = [rating for group in groups for rating in group.ratings("safety")]
    targets = torch.tensor([UNKNOWN if rating is None else target_of(rating) for rating in ratings])
    if not (targets == 0).any() or not (targets == 1).any():
        return scores.new_zeros(())
    differences = scores[targets == 1][:, None] - scores[targets == 0][None, :]
    return -functional.logsigmoid(differences - VETO_MARGIN).mean()


def target_of(rating: float | None) -> float:
    """The probability of being harmless that a rating stands for: 1 from 4 on, 0 up to 2."""
    assert rating is not None
    return min(1.0, max(0.0, (rating - 2) / 2))


def fit(
    net: Any, groups: Sequence[Group], rows: Sequence[Row], states: Sequence[Tensor], options: Options
) -> list[float]:
    """Trains the adapters and the head; returns the loss of every step."""
    rng = random.Random(SEED)  # noqa: S311 - to be reproducible, not secret
    adapters = [weight for name, weight in net.named_parameters() if weight.requires_grad and "lora_" in name]
    head = head_of(net).weight
    optimizer = torch.optim.AdamW(
        [{"params": adapters, "lr": options.rate}, {"params": [head], "lr": options.head_rate}], weight_decay=0.01
    )
    steps = [batch for _ in range(options.epochs) for batch in shuffled_batches(rows, rng)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, len(steps)))
    net.train()
    losses = []
    for indices in tqdm(steps, desc="training", mininterval=10, disable=None):
        features = final_states(net, [rows[i] for i in indices], [states[i] for i in indices], options.frozen)
        loss = loss_of(features @ head.T, [groups[i] for i in indices], options)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        nn.utils.clip_grad_norm_([*adapters, head], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    return losses


def shuffled_batches(rows: Sequence[Row], rng: random.Random) -> list[list[int]]:
    """Batches of similar lengths in random order, cut anew each time."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    chunks = [order[start : start + 256] for start in range(0, len(order), 256)]
    batches = [
        [chunk[index] for index in batch]
        for chunk in chunks
        for batch in batches_by_length([rows[index] for index in chunk], MAX_TOKENS)
    ]
    rng.shuffle(batches)
    return batches


def rate_at(step: int, num_steps: int) -> float:
    """The share of the peak rate: a linear warm-up, then a cosine down to a tenth."""
    warmup = max(1, round(WARMUP * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup))
