"""The commands for one checkpoint: `init`, `convert`, `inspect`. Imports torch only when one of them runs."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from app.checkpoints.early import check_declarations
from app.errors import ModelRefusedError, StartError
from app.files.flags import seed
from app.files.output import require_new_directory
from app.settings import HUB_PREFIX


def add_checkpoint_commands(commands: Any) -> None:
    init = commands.add_parser("init", help="make an untrained reward model from a causal language model")
    init.add_argument("--from-lm", type=Path, required=True, help="a directory with a causal language model")
    init.add_argument("--out", type=Path, required=True, help="a new directory for the reward model")
    init.add_argument("--seed", type=seed, default=0, help="seed of the new head's weights (default: 0)")
    init.set_defaults(run=run_init)

    convert = commands.add_parser(
        "convert",
        help="convert .bin weights to safetensors",
        description="Converts a checkpoint's .bin weights (pytorch_model.bin, adapter_model.bin, value_head.bin, sharded ones "
        "too) to safetensors. No code that a file may hold is run. Names, types and values stay.",
    )
    convert.add_argument("directory", metavar="DIR", type=Path, help="the checkpoint")
    convert.add_argument(
        "out", metavar="OUT", type=Path, nargs="?", help="a new directory for the whole checkpoint (default: into DIR)"
    )
    convert.set_defaults(run=run_convert)
    add_inspect(commands).set_defaults(run=run_inspect)


def add_inspect(commands: Any) -> argparse.ArgumentParser:
    inspect: argparse.ArgumentParser = commands.add_parser(
        "inspect",
        help="show how a checkpoint would be scored, and where each part comes from",
        description="Prints a checkpoint's trunk, head, position, map and text rules, each with where it came from, its memory, "
        "the path that it takes, and the scores of two texts. Where the service would refuse it: the reason, a reward.json that "
        "may declare what is missing, and exit code 1.",
    )
    inspect.add_argument("directory", metavar="DIR", help="the checkpoint: a directory, or hf: and a hub id")
    inspect.add_argument("--head", help="a declaration: JSON, a file like reward.json, or a preset's name")
    inspect.add_argument("--text", help="a chat template (a file or a name), or the JSON of text rules")
    inspect.add_argument("--device", default="auto", help="as --safety-device of serve (default: auto)")
    inspect.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16", "int8"], help="(default: auto)"
    )
    inspect.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the checkpoint contains"
    )
    return inspect


def run_init(options: argparse.Namespace) -> int:
    require_new_directory(options.out)
    if not (options.from_lm / "config.json").is_file():
        raise StartError(
            f"{options.from_lm} is no checkpoint: it has no config.json; give one with a causal language model"
        )

    from app.checkpoints.new_head import init_reward_model

    name = init_reward_model(options.from_lm, options.out, options.seed)
    sys.stdout.write(
        f"{options.out}: {name} with a random scalar head. It must be trained before it can be served: "
        "the service rejects an untrained head.\n"
    )
    return 0


def run_convert(options: argparse.Namespace) -> int:
    if options.out is not None:
        require_new_directory(options.out)

    from app.checkpoints.convert import convert

    converted = convert(options.directory, options.out)
    for copy, kept in converted.copies.items():
        sys.stdout.write(f"{copy} is the same tensor as {kept} and was left out\n")
    sys.stdout.write(f"{converted.directory}: {converted.num_tensors} tensors in {', '.join(converted.files)}\n")
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    """Prints the report. Returns exit code 1 if the service would reject the checkpoint."""
    is_directory = options.directory and Path(options.directory).is_dir()
    if not options.directory.startswith(HUB_PREFIX) and not is_directory:
        raise StartError(
            f"{options.directory or 'an empty name'} is not a directory; give one with a checkpoint, or {HUB_PREFIX} and a hub id"
        )

    try:
        check_declarations(options.directory, options.head, options.text)
    except ModelRefusedError as error:
        sys.stdout.write(f"{options.directory}\n  {'refused':<12} {error}\n")
        return 1

    from app.checkpoints.inspect import inspect

    report = inspect(
        options.directory,
        device=options.device,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
        declared=options.head,
        text=options.text,
    )
    sys.stdout.write(f"{options.directory}\n")
    for label, line in report.lines:
        sys.stdout.write(f"  {label:<12} {line}\n")
    if report.refusal is None:
        return 0
    sys.stdout.write(f"  {'refused':<12} {' '.join(report.refusal.split())}\n")
    if report.declaration is not None:
        sys.stdout.write(f"\nIf this is what it is, write {options.directory}/reward.json:\n")
        sys.stdout.write(json.dumps(report.declaration, indent=2) + "\n")
    return 1
