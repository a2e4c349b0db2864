"""Checks of a checkpoint that need transformers, and a context that silences its output."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from app.checkpoints.architecture import architecture_of
from app.checkpoints.checks import OTHER_RULES, check_architecture, check_class, check_labels, check_other_rules


def check_config(
    source: str, config: PreTrainedConfig, *, runs_own_code: bool = False, chooses_output: bool = False
) -> None:
    """Raises ModelRefusedError if this is no plain classifier, or one with rules of its own. It must have one output, unless a
    declared map chooses among several."""
    architecture = architecture_of(getattr(config, "architectures", None))
    check_architecture(source, architecture)
    native = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type)
    if not runs_own_code:
        check_class(source, architecture, native, config.model_type)
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
