"""Checks of a checkpoint that need what transformers knows of it, and what it says meanwhile."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from app.checkpoints.architecture import architecture_of
from app.checkpoints.checks import OTHER_RULES, check_architecture, check_labels, check_other_rules
from app.errors import ModelRefusedError


def check_config(
    source: str, config: PreTrainedConfig, *, runs_own_code: bool = False, chooses_output: bool = False
) -> None:
    """Raises where this is no plain classifier, or a classifier's name on a checkpoint with rules of its own. It has one output
    unless a declared map chooses among several."""
    architecture = architecture_of(getattr(config, "architectures", None))
    check_architecture(source, architecture)
    native = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type)
    if native is not None and architecture != native and not runs_own_code:
        raise ModelRefusedError(
            f"{source} is {architecture}, and transformers has {native} for its model_type {config.model_type}: the score may be "
            f'another; declare how it is read in reward.json, such as {{"head": "score", "position": "last"}}, or let architectures '
            f"in config.json be [{native}] if it is one"
        )
    if not chooses_output:
        check_labels(source, config.num_labels or 0)
    check_other_rules(source, architecture, {name: getattr(config, name, None) for name in OTHER_RULES})


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Its warnings about a checkpoint are our refusals, and its progress bars no one's log."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
