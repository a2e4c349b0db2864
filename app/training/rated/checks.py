"""Which options of `reward-service train` go with rated groups, and which with pairs. Imports nothing slow."""

from app.errors import TrainingError
from app.training.options import DEFAULTS, TrainOptions
from app.training.rated.groups import GroupFile

PAIRS_ONLY = {
    "resume": ("--resume", "start the run again, in a new directory"),
    "save_steps": ("--save-steps", "leave it out"),
    "gradient_checkpointing": ("--gradient-checkpointing", "freeze more layers, or lower --max-batch-tokens"),
    "batch_size": ("--batch-size", "set --max-batch-tokens"),
    "accumulate": ("--accumulate", "raise --max-batch-tokens"),
}
"""Options that rated groups do not have: the flag, and what to do instead."""
RATED_ONLY = {
    "pointwise": "--pointwise",
    "rank_across_prompts": "--rank-across-prompts",
    "head_learning_rate": "--head-lr",
    "max_batch_tokens": "--max-batch-tokens",
    "adapter_only": "--adapter-only",
}


def check_pair_options(options: TrainOptions, file: str) -> None:
    """Raises TrainingError for an option that is for rated groups."""
    for name, flag in RATED_ONLY.items():
        if getattr(options, name) != DEFAULTS[name]:
            raise TrainingError(f"{flag} is for rated groups, and {file} holds pairs; leave it out")


def check_rated_options(options: TrainOptions, groups: GroupFile) -> None:
    """Raises TrainingError for an option that is for pairs, a missing --lora-rank, or a rating that the groups do not have."""
    for name, (flag, remedy) in PAIRS_ONLY.items():
        if getattr(options, name) != DEFAULTS[name]:
            raise TrainingError(f"{flag} is for pairs, and {groups.name} holds rated groups; {remedy}")
    if not options.lora_rank:
        raise TrainingError(f"{groups.name} holds rated groups, which train an adapter; set --lora-rank, such as 16")
    for flag, rating in (("--pointwise", options.pointwise), ("--rank-across-prompts", options.rank_across_prompts)):
        if rating is not None and rating not in groups.names:
            raise TrainingError(f"{flag} is {rating!r}, but the ratings in {groups.name} are {', '.join(groups.names)}")
