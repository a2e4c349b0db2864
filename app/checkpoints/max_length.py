"""The longest sequence that a checkpoint accepts, from its positions, its tokenizer and its config."""

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNSTATED_MAX_LENGTH = 1 << 20
"""The limit in tokens if no file states one."""
NO_LIMIT = 1 << 40
"""Larger values mean no limit: transformers returns 10^30 for a tokenizer whose files state no length."""


def max_length_of(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str]:
    """The longest sequence in tokens, and where this limit is stated.

    It is the smallest limit of the model's positions and the tokenizer. If neither has one, it is the config's `n_positions`
    (the training length of a T5, whose positions are relative), or else UNSTATED_MAX_LENGTH.
    """
    config = net.config.get_text_config()
    stated = {
        "max_position_embeddings in config.json": getattr(config, "max_position_embeddings", None),
        "model_max_length of the tokenizer": tokenizer.model_max_length,
    }
    for name, module in net.named_modules():  # RoBERTa counts its positions from the pad id + 1
        positions = getattr(module, "position_embeddings", None)
        if isinstance(positions, nn.Embedding) and positions.padding_idx is not None:
            stated[f"{name}.position_embeddings"] = positions.num_embeddings - positions.padding_idx - 1
    limits = known(stated) or known({"n_positions in config.json": getattr(config, "n_positions", None)})
    if not limits:
        return UNSTATED_MAX_LENGTH, "the default, as no file states a limit; REWARD_MAX_LENGTH sets a lower one"
    where = min(limits, key=lambda name: limits[name])
    return limits[where], where


def known(stated: dict[str, int | None]) -> dict[str, int]:
    return {where: limit for where, limit in stated.items() if limit is not None and 0 < limit < NO_LIMIT}
