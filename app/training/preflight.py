"""Checks a run's arguments within a second, before torch is imported or a model is loaded."""

import importlib.util
from pathlib import Path

from app.errors import TrainingError, install_command
from app.settings import Settings
from app.training.data import read_data
from app.training.options import TrainOptions
from app.training.pairs import PairFile
from app.training.rated.checks import check_pair_options, check_rated_options
from app.training.rated.groups import GroupFile
from app.training.workspace import Workspace

EXTRA = ("trl", "datasets", "accelerate", "peft", "matplotlib")


def check_options(options: TrainOptions) -> tuple[Workspace, PairFile | GroupFile]:
    """The run's directory and its data. Raises TrainingError, or InvalidInputError that names a line."""
    require_extra()
    if options.lora_alpha is not None and not options.lora_rank:
        raise TrainingError("--lora-alpha needs --lora-rank")
    require_base(options.base)
    workspace = Workspace(options.out)
    workspace.check(resume=options.resume)
    Settings(
        safety_model="", helpfulness_model=str(options.out), compat_model=None
    )  # the evaluation at the end reads them
    data = read_data(options.data)
    if isinstance(data, GroupFile):
        check_rated_options(options, data)
    else:
        check_pair_options(options, data.name)
    return workspace, data


def require_extra() -> None:
    """Raises TrainingError if a package of the extra `train` is not installed."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingError(f"{', '.join(missing)} not installed; run {install_command('train')}")


def require_base(directory: Path) -> None:
    """Raises TrainingError if the directory holds no checkpoint."""
    if not directory.is_dir():
        raise TrainingError(f"no base at {directory}; give a directory with a language model or a reward model")
    if not (directory / "config.json").is_file() and not (directory / "adapter_config.json").is_file():
        raise TrainingError(f"{directory} cannot be loaded: it has no config.json; give a checkpoint's directory")
