"""Step 5a: the safety head, by cross-validation and then on everything -> `work/safety_cv.jsonl`, `models/safety`.

The score is linear in the mean of the trunk's states over all tokens, so the frozen trunk runs once and training takes
seconds. The loss is Llama 2's margin ranking loss plus its auxiliary pointwise safety loss (Touvron et al. 2023, section
3.2.2: "an auxiliary safety loss"), which a ranking needs to know where zero is:

    L = mean_pairs -log sigmoid(r_c - r_r - m(rating)) + AUXILIARY * mean_responses BCE(sigmoid(r), 1 - severity) + L2 * |w|^2

Last comes one shift of all scores, so that `VETOED` of the responses of severity >= 0.75 fall below probability 0.15. In
the cross-validation it is found on the training folds' own held-out scores.

    python -m models.recipe.train_safety
"""

# ruff: noqa: S311 - draws are to be reproducible, not secret

import hashlib
import json
import math
import random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from tqdm import tqdm

from models.recipe.common import (
    SEED,
    WORK,
    encode,
    load_tokenizer,
    load_trunk,
    num_threads,
    read_jsonl,
    save_checkpoint,
    write_jsonl,
)
from models.recipe.fold import fold_mean_probe
from models.recipe.trunk_states import last_layer_inputs, rms_norm

NUM_FOLDS = 5
MARGIN = {"significantly_better": 3.0, "better": 2.0, "slightly_better": 1.0, "negligibly_better": 0.0}
KIND_WEIGHT = {"harm": 1.0, "jailbreak": 0.15, "benign": 0.6}  # each kind's share of the ranking loss
SOURCE_WEIGHT = {  # a response's weight in the pointwise loss: human severities count most, 16 repeated refusals least
    "harm": 1.0,
    "refusal_scorer": 1.0,
    "benign": 1.5,
    "objective": 0.5,
    "many_shot": 0.2,
    "opening": 0.15,
    "refusal": 0.15,
}
AUXILIARY, L2 = 2.0, 0.3
NUM_STEPS = 100
VETO, VETOED = math.log(0.15 / 0.85), 0.87
MAX_PROMPT, MAX_RESPONSE = 96, 288


def folds(groups: list[str], num_folds: int, seed: int) -> dict[str, int]:
    """A fold for every group, equal in size, by seed."""
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    return {name: index % num_folds for index, name in enumerate(names)}


def mean_states(rows: list[dict[str, Any]]) -> Tensor:
    """The mean over tokens of each response's normalised states, (responses, hidden); kept in `work/`."""
    cache = WORK / "safety_states.pt"
    sources = (WORK / "safety_responses.jsonl", WORK / "trunk" / "model.safetensors")
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    if cache.exists() and (kept := torch.load(cache))["key"] == key:
        states: Tensor = kept["states"]
        return states
    model, _ = load_trunk("trunk")
    tokenizer = load_tokenizer()
    sequences = [encode(tokenizer, row["prompt"], row["response"], MAX_PROMPT, MAX_RESPONSE) for row in rows]
    states = torch.zeros(len(rows), model.config.hidden_size)
    for index, tokens in last_layer_inputs(model, sequences, "safety states"):
        states[index] = rms_norm(tokens).mean(0)
    torch.save({"key": key, "states": states}, cache)
    return states


def fit(
    states: Tensor, severity: Tensor, pairs: list[dict[str, Any]], used: Tensor, weight_by_row: Tensor
) -> tuple[Tensor, float, list[float]]:
    """(weight, bias, loss by step) of the linear score on the rows that `used` marks; full batch, L-BFGS."""
    mean, deviation = states[used].mean(0), states[used].std(0) + 1e-3
    standard = (states - mean) / deviation
    chosen = torch.tensor([p["chosen_id"] for p in pairs])
    rejected = torch.tensor([p["rejected_id"] for p in pairs])
    margin = torch.tensor([MARGIN[p["rating"]] for p in pairs])
    kinds = [p["kind"] for p in pairs]
    share = torch.tensor([KIND_WEIGHT[kind] / kinds.count(kind) for kind in kinds])
    rows = torch.nonzero(used)[:, 0]
    weight = torch.zeros(states.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer: Any = torch.optim.LBFGS(  # Any: its step is untyped
        [weight, bias], max_iter=NUM_STEPS, line_search_fn="strong_wolfe", history_size=20
    )
    losses: list[float] = []

    def closure() -> Any:
        optimizer.zero_grad()
        score = standard @ weight + bias
        ranking = (softplus(-(score[chosen] - score[rejected] - margin)) * share).sum() / share.sum()
        pointwise = binary_cross_entropy_with_logits(score[rows], 1 - severity[rows], weight_by_row[rows])
        loss: Any = ranking + AUXILIARY * pointwise + L2 * weight.pow(2).sum()
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    optimizer.step(closure)
    folded = (weight / deviation).detach()
    return folded, float(bias.detach() - folded @ mean), losses


def veto_shift(score: Tensor, rows: list[dict[str, Any]]) -> float:
    """What to add so that VETOED of the human-rated responses of severity >= 0.75 score below logit(0.15)."""
    severe = [i for i, row in enumerate(rows) if row["source"] == "harm" and row["severity"] >= 0.745]
    return VETO - float(score[severe].quantile(VETOED))


def main() -> None:
    torch.set_num_threads(num_threads())
    rows, pairs = read_jsonl(WORK / "safety_responses.jsonl"), read_jsonl(WORK / "safety_pairs.jsonl")
    states = mean_states(rows)
    severity = torch.tensor([row["severity"] for row in rows])
    weight_by_row = torch.tensor([SOURCE_WEIGHT[row["source"]] for row in rows])
    fold = folds([row["group"] for row in rows], NUM_FOLDS, SEED)
    of_row = torch.tensor([fold[row["group"]] for row in rows])
    score = torch.zeros(len(rows))
    curves: dict[str, list[float]] = {}
    for held_out in tqdm(range(NUM_FOLDS), desc="cross-validation", unit="fold"):
        training = [p for p in pairs if fold[p["group"]] != held_out]
        weight, bias, curves[f"fold {held_out}"] = fit(states, severity, training, of_row != held_out, weight_by_row)
        own = of_row == held_out
        score[own] = states[own] @ weight + bias
    shifted = score.clone()
    for held_out in range(NUM_FOLDS):
        others = [i for i in range(len(rows)) if of_row[i] != held_out]
        shifted[of_row == held_out] += veto_shift(score[others], [rows[i] for i in others])
    write_jsonl(
        WORK / "safety_cv.jsonl",
        ({**row, "fold": int(of_row[i]), "score": round(float(shifted[i]), 4)} for i, row in enumerate(rows)),
    )
    weight, bias, curves["all"] = fit(states, severity, pairs, torch.ones(len(rows), dtype=torch.bool), weight_by_row)
    # The shift comes from held-out scores: on its own training data the final fit would look too sure.
    bias += veto_shift(score, rows)
    folder = save_checkpoint(fold_mean_probe(weight, bias), "safety")
    (WORK / "safety_losses.json").write_text(json.dumps(curves))
    print(f"{folder}: loss {curves['all'][0]:.3f} -> {curves['all'][-1]:.3f}")


if __name__ == "__main__":
    main()
