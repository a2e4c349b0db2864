"""Step 2: the trainings -> `work/scores_<name>.jsonl` and, of the one on everything, `work/adapter/`.

`all`, which ships, and five folds by prompt, `0` to `4`, which judge it. Fold 0 never sees three kinds either, drawn by the seed.

    python -m models.recipe.folds [NAME ...]
"""

import hashlib
import json
import multiprocessing
import os
import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor

from app.training.rated.fit import Example, fit
from app.training.rated.model import RatedModel
from app.training.rated.packed import Row
from models.recipe.common import MODELS, SEED, WORK, num_threads, read_jsonl, write_jsonl
from models.recipe.groups import TASKS, Group, Response, row_of
from models.recipe.judge import Scored
from models.recipe.preferences import read_preferences
from models.recipe.training import FROZEN, OBJECTIVE, SCHEDULE, load_model

NUM_FOLDS = 5
NUM_UNSEEN_KINDS = 3
FOLDS = tuple(map(str, range(NUM_FOLDS)))
BLIND = FOLDS[0]
"""The fold whose training leaves some kinds out altogether."""
NAMES = ("all", BLIND)
"""What a rebuild needs: the shipped model is calibrated on what this fold held out."""
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
"""Settings of glibc with which it keeps freed memory: half as much time goes into page faults."""


def fold_of(group: Group) -> int:
    """By the last turn before the responses, so that a prompt is in one fold whatever file it is in."""
    return int(hashlib.sha256(group.prompt.encode()).hexdigest(), 16) % NUM_FOLDS


def unseen_kinds(groups: Sequence[Group]) -> list[str]:
    kinds = sorted({group.kind for group in groups})
    return sorted(random.Random(SEED).sample(kinds, NUM_UNSEEN_KINDS))  # noqa: S311 - to be reproducible, not secret


def is_held_out(name: str, group: Group, unseen: Sequence[str]) -> bool:
    if name == "all":
        return False
    return fold_of(group) == int(name) or is_of_unseen_kind(name, group, unseen)


def is_of_unseen_kind(name: str, group: Group, unseen: Sequence[str]) -> bool:
    return name == BLIND and group.kind in unseen


def cached_states(model: RatedModel, rows: Sequence[Row]) -> list[Tensor]:
    """The rows' states behind the frozen layers, kept in `work/` by their tokens from one training to the next."""
    file = WORK / f"states_{FROZEN}.pt"
    cache: dict[str, Tensor] = torch.load(file) if file.exists() else {}
    keys = [hashlib.sha256(row.ids.numpy().tobytes()).hexdigest() for row in rows]
    missing = [index for index, key in enumerate(keys) if key not in cache]
    if missing:
        for index, states in zip(missing, model.frozen_states([rows[index] for index in missing]), strict=True):
            cache[keys[index]] = states
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(cache, file)
    return [cache[key] for key in keys]


def scored(groups: Sequence[Group], features: Sequence[Tensor], head: Tensor) -> Iterator[dict[str, Any]]:
    for group, states in zip(groups, features, strict=True):
        scores = (states @ head.T).tolist()
        yield {
            "kind": group.kind,
            "turns": group.turns,
            "responses": [
                {"text": response.text} | {task: getattr(response, task) for task in TASKS} | {"scores": own}
                for response, own in zip(group.responses, scores, strict=True)
            ],
        }


def read_scores(name: str) -> list[Scored]:
    """What a training gave the responses that it was not trained on, in the order of the files."""
    found = []
    for row in read_jsonl(WORK / f"scores_{name}.jsonl"):
        responses = tuple(
            Response(response["text"], response["safety"], response["helpfulness"]) for response in row["responses"]
        )
        group = Group(row["kind"], tuple(map(tuple, row["turns"])), responses)
        scores = {
            task: [response["scores"][column] for response in row["responses"]] for column, task in enumerate(TASKS)
        }
        found.append(Scored(group, scores, name))
    return found


def train(name: str) -> None:
    """One training; writes what it gave the responses that it was not trained on."""
    groups, rows = read_rows()
    unseen = unseen_kinds(groups)
    held_out = [is_held_out(name, group, unseen) for group in groups]
    trained = [i for i in range(len(groups)) if not held_out[i]]
    judged = [i for i in range(len(groups)) if held_out[i]]
    model = load_model()
    states = cached_states(model, rows)
    print(f"{name}: {len(trained)} prompts to train on, {len(judged)} held out", flush=True)
    log = fit(model, [Example(rows[i], states[i], groups[i].ratings_by_task) for i in trained], OBJECTIVE, SCHEDULE)
    (WORK / f"loss_{name}.json").write_text(json.dumps([entry["loss"] for entry in log]))
    model.net.save_pretrained(WORK / f"adapter_{name}")
    # The folds' are judged on; those of `all` only tell which direction of the states is constant.
    shown = judged or trained[:: len(trained) // 256 + 1]
    features = model.features_of([rows[i] for i in shown], [states[i] for i in shown])
    torch.save(torch.cat(features), WORK / f"features_{name}.pt")
    head = model.head.weight.detach()
    write_jsonl(WORK / f"scores_{name}.jsonl", scored([groups[i] for i in judged], features, head) if judged else [])


def read_rows() -> tuple[list[Group], list[Row]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS / "trunk")
    groups = read_preferences()
    return groups, [row_of(group, tokenizer) for group in groups]


def main() -> None:
    """One training per processor at once, each on one thread: small products don't gain much from a second one."""
    torch.set_num_threads(num_threads())
    cached_states(load_model(), read_rows()[1])
    os.environ |= ALLOCATOR
    with ProcessPoolExecutor(
        num_threads(), multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        list(pool.map(train, sys.argv[1:] or NAMES))


if __name__ == "__main__":
    main()
