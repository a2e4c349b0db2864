"""A training run: from a base and a file of pairs to a directory that the service serves (see `workspace`)."""

import gc
import math
import warnings
from typing import Any

import torch
import transformers
from tqdm import tqdm

from app.checkpoints.placement import pick_device
from app.checkpoints.transformers_checks import quiet_transformers
from app.engine.num_threads import thread_limit
from app.engine.process import prepare_process
from app.engine.tokenization import Tokenization
from app.errors import TrainingError, one_line
from app.training.base import Base, freeze, length_limit, load_base, with_lora
from app.training.encoding import Example, encode, split
from app.training.options import TrainOptions
from app.training.outcome import judge, memory_remedy, result_of, save_checkpoint, tell, write_curve
from app.training.pairs import PairFile
from app.training.preflight import check_options
from app.training.rated.groups import GroupFile
from app.training.rated.run import train_rated
from app.training.workspace import Workspace

WARMUP, LAST_RATE = 0.03, 0.1
"""Llama 2's schedule (section 3.2.2): a warm-up of 3 % of the steps, then a cosine down to a tenth of the learning rate."""
MAX_LOGGED_STEPS, CHECKPOINTS_PER_RUN = 1000, 10


def train(options: TrainOptions, checked: tuple[Workspace, PairFile | GroupFile] | None = None) -> None:
    """Runs the training; `checked` is what `check_options` returned, where it was called before. Raises TrainingError, ModelRefusedError or InvalidInputError, each with a one-line message."""
    workspace, data = checked or check_options(options)
    prepare_process()
    torch.set_num_threads(thread_limit(None).num_threads)
    if isinstance(data, GroupFile):
        train_rated(options, workspace, data, WARMUP)
    else:
        train_pairs(options, workspace, data)


def train_pairs(options: TrainOptions, workspace: Workspace, pairs: PairFile) -> None:
    base = load_base(options.base, options.seed)
    max_length = length_limit(options, base)
    trained, held_out, facts = prepare(options, pairs, base, max_length)
    workspace.begin(options, pairs.digest, facts)
    remedy = "lower --batch-size and raise --accumulate, set --gradient-checkpointing, or train --lora-rank"
    with memory_remedy(remedy):
        curve = fit(options, base, trained, held_out, workspace)
    write_curve(options.out, curve)
    del base
    gc.collect()
    evaluation = judge(options, options.out, [example.line for example in held_out or trained[:1]], max_length)
    workspace.finish(result_of(evaluation) if held_out else {})
    workspace.delete_checkpoints()
    tell(f"{options.out} is ready to be served, as --helpfulness-model or --safety-model")


def prepare(
    options: TrainOptions, pairs: PairFile, base: Base, max_length: int
) -> tuple[list[Example], list[Example], dict[str, Any]]:
    """(training examples, held-out examples, facts for the run's record)."""
    tokenization = Tokenization(base.tokenizer, max_length, base.vocab_size)
    with tqdm(total=len(pairs.lines), unit="pair", desc="tokenizing", disable=None) as bar:
        examples = encode(pairs, tokenization, base.pad_token_id, options.margin_scheme, options.truncation, bar.update)
    trained, held_out = split(examples.kept, options.held_out, options.seed)
    notes = [*pairs.notes, *examples.notes(max_length, str(base.tokenizer.pad_token))]
    if base.has_new_head:
        notes.append("the base is a language model: it gets a new scalar head")
    for note in notes:
        tell(note)
    tell(
        f"{len(trained)} pairs to train on, {len(held_out)} held out, of {len(pairs.lines)}; at most {max_length} tokens"
    )
    counts = {"read": len(pairs.lines), "trained": len(trained), "held_out": len(held_out)}
    return trained, held_out, {"pairs": counts, "notes": notes, "max_length": max_length}


def fit(
    options: TrainOptions, base: Base, trained: list[Example], held_out: list[Example], workspace: Workspace
) -> list[dict[str, Any]]:
    """Trains, from the last checkpoint of a resumed run, and saves the result; returns the trainer's log."""
    from app.training.trainer import PairTrainer

    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between the libraries, not ours
        net = trained_part(options, base)
        try:
            trainer = PairTrainer(net, arguments(options, len(trained), workspace), trained, held_out, base.tokenizer)
        except ValueError as error:  # such as TRL's about several GPUs
            raise TrainingError(one_line(error)) from error
        trainer.train(resume_from_checkpoint=workspace.last_checkpoint() if options.resume else None)
        log: list[dict[str, Any]] = trainer.state.log_history
        if net is not base.net:
            net.save_pretrained(workspace.adapter)
            net = net.merge_and_unload()
        save_checkpoint(net, base.tokenizer, base.dtype, workspace.out)
    return log


def trained_part(options: TrainOptions, base: Base) -> Any:
    """The model with its frozen layers, wrapped in adapters if LoRA is on."""
    transformers.set_seed(options.seed)  # for the adapters' initial weights
    if options.freeze_layers:
        freeze(base.net, options.freeze_layers)
    if options.lora_rank:
        return with_lora(base.net, options.lora_rank, options.alpha, options.freeze_layers)
    return base.net


def arguments(options: TrainOptions, num_pairs: int, workspace: Workspace) -> Any:
    from trl import RewardConfig

    steps_per_epoch = math.ceil(math.ceil(num_pairs / options.batch_size) / options.accumulate)
    num_steps = math.ceil(options.epochs * steps_per_epoch)
    device = pick_device(options.device)
    return RewardConfig(
        output_dir=str(workspace.checkpoints),
        num_train_epochs=options.epochs,
        learning_rate=options.peak_learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": LAST_RATE},
        warmup_steps=int(WARMUP * num_steps),
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        gradient_checkpointing=None,  # deprecated name of the next option
        activation_checkpointing=options.gradient_checkpointing,
        max_length=None,  # sequences over the limit have been handled already
        seed=options.seed,
        data_seed=options.seed,
        save_steps=options.save_steps or math.ceil(num_steps / CHECKPOINTS_PER_RUN),
        save_total_limit=1,
        logging_steps=math.ceil(num_steps / MAX_LOGGED_STEPS),
        report_to="none",
        disable_tqdm=True,  # `callbacks.progress_callback` shows the progress
        use_cpu=device.type == "cpu",
        bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=device.type == "cuda",
    )
