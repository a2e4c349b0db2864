"""Finds the position at which an encoder-decoder's classifier reads its score, by running the model."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.engine.head import Position
from app.errors import one_line

NUM_PROBE_TOKENS = 8


def position_of_class(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Position:
    """The position that the model's own forward reads.

    Most of these classes (such as T5, BART, mBART and MVP) read the decoder's state at the last end-of-sequence token, and
    raise for a text without one. Others (T5Gemma) read the last token.
    """
    eos: int | None = net.config.eos_token_id
    if not net.config.is_encoder_decoder or not isinstance(eos, int):
        return Position()
    special = {eos, *(getattr(net.config, f"{name}_token_id", None) for name in ("pad", "bos"))}
    ordinary = [token_id for token_id in range(NUM_PROBE_TOKENS + len(special)) if token_id not in special]
    if fails_on(net, ordinary) is None or fails_on(net, [*ordinary, eos]) is not None:
        return Position()
    return Position("last_of", (eos,), name=f"end-of-sequence token {tokenizer.convert_ids_to_tokens(eos)}")


def fails_on(net: PreTrainedModel, token_ids: list[int]) -> str | None:
    """The error of a forward pass of these tokens, on one line; None if it succeeds."""
    input_ids = torch.tensor([token_ids], device=net.device)
    try:
        with torch.inference_mode():
            net(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
    except Exception as error:  # noqa: BLE001 - each class raises its own
        return one_line(error)
    return None
