"""A training run on rated groups: from a base and a file to a directory per rating that the service serves."""

import gc
import sys
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from tqdm import tqdm

from app.checkpoints.placement import pick_device
from app.checkpoints.transformers_checks import quiet_transformers
from app.engine.tokenization import Tokenization
from app.errors import TrainingError
from app.files.output import new_directory
from app.rewards.margins import rating_margin
from app.training.base import Base, length_limit, load_base, with_lora
from app.training.encoding import split
from app.training.options import MAX_BATCH_TOKENS, TrainOptions
from app.training.outcome import judge, memory_remedy, result_of, tell, write_curve
from app.training.pairs import PairLine
from app.training.rated.encoding import EncodedGroup, encode
from app.training.rated.fit import Example, Schedule, figures_of, fit
from app.training.rated.groups import GroupFile
from app.training.rated.losses import Objective, pairs_of
from app.training.rated.model import RatedModel, check_packed, give_heads
from app.training.rated.packed import Row
from app.training.rated.save import adapters_of
from app.training.workspace import Workspace

Log = list[dict[str, Any]]


def train_rated(options: TrainOptions, workspace: Workspace, groups: GroupFile, warmup: float) -> None:
    """Runs the training. Raises TrainingError, ModelRefusedError or InvalidInputError, each with a one-line message."""
    objective = Objective(groups.names, options.margin_scheme, options.pointwise, options.rank_across_prompts)
    base = load_base(options.base, options.seed)
    max_length = length_limit(options, base)
    trained, held_out, facts = prepare(options, groups, base, objective, max_length)
    with quiet_transformers(), memory_remedy("lower --max-batch-tokens, or freeze more layers"):
        model = make_model(options, base, objective, [each.row for each in (*trained, *held_out)])
        workspace.begin(options, groups.digest, facts)
        log = train_model(options, model, objective, trained, held_out, warmup)
    write_curve(options.out, log)
    adapters, dtype = adapters_of(model.net, base.tokenizer, options.base, objective.names), base.dtype
    del model, base
    gc.collect()
    for name, adapter in adapters.items():
        with new_directory(options.out / name) as directory:
            if options.adapter_only:
                adapter.save(directory)
            else:
                adapter.save_merged(directory, dtype)
    results = {name: judge_rating(options, name, trained, held_out, max_length) for name in objective.names}
    workspace.finish({name: result for name, result in results.items() if result is not None})
    places = ", ".join(str(options.out / name) for name in objective.names)
    tell(f"{places} {'is' if len(results) == 1 else 'are'} ready to be served")


def prepare(
    options: TrainOptions, groups: GroupFile, base: Base, objective: Objective, max_length: int
) -> tuple[list[EncodedGroup], list[EncodedGroup], dict[str, Any]]:
    """(groups to train on, held-out groups, facts for the run's record)."""
    tokenization = Tokenization(base.tokenizer, max_length, base.vocab_size)
    with tqdm(total=len(groups.lines), unit="prompt", desc="tokenizing", disable=None) as bar:
        found = encode(groups, tokenization, base.pad_token_id, objective, options.truncation, bar.update)
    trained, held_out = split(found.kept, options.held_out, options.seed, "rated group")
    heads = "a new scalar head" if base.has_new_head else "a copy of the base's head"
    notes = [*groups.notes, *found.notes(max_length, str(base.tokenizer.pad_token)), f"each rating gets {heads}"]
    for note in notes:
        tell(note)
    num_pairs = {name: sum(len(list(pairs_of(each.line.ratings(name)))) for each in trained) for name in groups.names}
    for name, count in num_pairs.items():
        if not count:
            raise TrainingError(f"no pair by {name} is left to train on; lower --held-out, or give more rated groups")
    told = ", ".join(f"{count} pairs by {name}" for name, count in num_pairs.items())
    tell(
        f"{len(trained)} prompts to train on ({told}), {len(held_out)} held out, of {len(groups.lines)}; at most {max_length} tokens"
    )
    counts = {"read": len(groups.lines), "trained": len(trained), "held_out": len(held_out)}
    facts = {"prompts": counts, "ratings": num_pairs, "notes": notes, "max_length": max_length}
    return trained, held_out, facts


def make_model(options: TrainOptions, base: Base, objective: Objective, rows: Sequence[Row]) -> RatedModel:
    """The base with an output per rating and adapters on the layers that are not frozen."""
    device = pick_device(options.device)
    give_heads(base, len(objective.names), options.seed)
    net: Any = base.net
    check_packed(options.base, net.to(device), rows)
    transformers.set_seed(options.seed)  # for the adapters' initial weights
    return RatedModel(
        with_lora(base.net, options.lora_rank, options.alpha, options.freeze_layers),
        options.freeze_layers,
        device=device,
        bfloat16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
        max_batch_tokens=options.max_batch_tokens or MAX_BATCH_TOKENS,
    )


def train_model(
    options: TrainOptions,
    model: RatedModel,
    objective: Objective,
    trained: Sequence[EncodedGroup],
    held_out: Sequence[EncodedGroup],
    warmup: float,
) -> Log:
    """Trains; returns the log of the steps and, before the first one and after each epoch, of the held-out groups."""
    examples, judged = examples_of(model, trained, objective), examples_of(model, held_out, objective)
    schedule = Schedule(
        epochs=options.epochs,
        learning_rate=options.peak_learning_rate,
        head_learning_rate=options.head_learning_rate or options.peak_learning_rate,
        warmup=warmup,
        seed=options.seed,
    )
    held_out_log: Log = []

    def after_epoch(step: int) -> None:
        epoch = min(float(len(held_out_log)), options.epochs)
        found = figures_of(model, judged, objective) if judged else {}
        held_out_log.append(
            {"step": step, "epoch": epoch} | {f"held_out_{name}": value for name, value in found.items()}
        )
        if judged:
            told = f"epoch {epoch:g} of {options.epochs:g}, held-out loss {found['loss']:.4f}"
            tqdm.write(told, file=sys.stderr)  # above the progress bar, if there is one

    return [*fit(model, examples, objective, schedule, after_epoch), *held_out_log]


def examples_of(model: RatedModel, groups: Sequence[EncodedGroup], objective: Objective) -> list[Example]:
    states = model.frozen_states([group.row for group in groups])
    return [
        Example(group.row, own, {name: group.line.ratings(name) for name in objective.names})
        for group, own in zip(groups, states, strict=True)
    ]


def judge_rating(
    options: TrainOptions,
    name: str,
    trained: Sequence[EncodedGroup],
    held_out: Sequence[EncodedGroup],
    max_length: int,
) -> dict[str, Any] | None:
    """The service's verdict on the held-out pairs of a rating; None where there are none, but the model is served all the same."""
    lines = pair_lines(options, name, held_out)
    evaluation = judge(options, options.out / name, lines or pair_lines(options, name, trained)[:1], max_length)
    return result_of(evaluation, name) if lines else None


def pair_lines(options: TrainOptions, name: str, groups: Sequence[EncodedGroup]) -> list[PairLine]:
    """Every two responses of a group that differ in the rating, with their margin."""
    return [
        PairLine(group.line.number, group.line.pair(better, worse, rating_margin(difference, options.margin_scheme)))
        for group in groups
        for better, worse, difference in pairs_of(group.line.ratings(name))
    ]
