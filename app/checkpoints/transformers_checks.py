"""Checks of a checkpoint that need transformers, and a context that silences its output."""

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
    """Raises ModelRefusedError if this is no plain classifier, or one with rules of its own. It must have one output, unless a
    declared map chooses among several."""
    architecture = architecture_of(getattr(config, "architectures", None))
    check_architecture(source, architecture)
    native = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type)
    if native is not None and architecture != native and not runs_own_code:
        raise ModelRefusedError(
            f"{source} is {architecture}, but transformers has {native} for its model_type {config.model_type}, so the scores may "
            f'differ; declare how it is read in reward.json, such as {{"head": "score", "position": "last"}}, or set architectures '
            f"in config.json to [{native}] if it is one"
        )
    if not chooses_output:
        check_labels(source, config.num_labels or 0)
    check_other_rules(source, architecture, {name: getattr(config, name, None) for name in OTHER_RULES})


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' warnings, which our checks replace, and its progress bars."""
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
