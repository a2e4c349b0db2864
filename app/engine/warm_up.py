"""Computes the largest batch on a GPU before the models serve, to show that it fits and how much memory it takes.

This first forward pass also compiles kernels and initializes libraries, so that the first request does not wait for that.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from app.engine.batch import Batch
from app.engine.devices import free_memory, is_out_of_memory
from app.engine.reward_model import RewardModel
from app.engine.self_test import scorable
from app.engine.sequence import TokenSequence
from app.engine.units import byte_size
from app.errors import ModelRefusedError, one_line

logger = logging.getLogger(__name__)

DEFAULT_BATCH_TOKENS = 32_768
MIN_BATCH_TOKENS = 1024
BATCH_SHARE = 0.5
"""The default share of the memory left by the weights for the largest batch; the prefix cache gets the rest."""
LONG_FORWARD_FLOPS = 2e15
"""A text longer than the batch is tried at start if its forward pass needs fewer FLOPs (a few seconds on a GPU)."""


def warm_up(
    models: Sequence[RewardModel],
    max_batch_tokens: int | None,
    free_bytes: int | None,
    measure: Callable[[RewardModel, int], int] | None = None,
) -> int:
    """Sets the batch size of the models of one GPU and computes a batch of that size with each. Returns its peak bytes.

    A given `max_batch_tokens` is used as it is. Otherwise it tries DEFAULT_BATCH_TOKENS, half of that, and so on, until a
    batch takes at most half of `free_bytes`, the device's free memory with the weights loaded. `measure` computes a batch and
    returns its peak bytes (default: `peak_bytes`).

    Raises ModelRefusedError if not even the smallest batch fits.
    """
    measure = peak_bytes if measure is None else measure
    room = BATCH_SHARE * free_bytes if free_bytes is not None else float("inf")
    num_tokens = max_batch_tokens or DEFAULT_BATCH_TOKENS
    while True:
        for model in models:
            model.max_batch_tokens = num_tokens
        peaks = [attempt(model, num_tokens, measure) for model in models]
        is_last = max_batch_tokens is not None or num_tokens // 2 < MIN_BATCH_TOKENS
        if None not in peaks and (is_last or max(filter(None, peaks), default=0) <= room):
            break
        if is_last:
            raise ModelRefusedError(
                f"{models[0].device} has no room for a batch of {num_tokens} tokens beside the weights; "
                "set REWARD_MAX_BATCH_TOKENS lower, or use dtype int8, a smaller checkpoint, or device split"
            )
        num_tokens //= 2
    most = max(filter(None, peaks), default=0)
    size, device = models[0].max_batch_tokens, models[0].device
    logger.info("%s: batches of %d tokens, %s at most (measured)", device, size, byte_size(most))
    return max([most, *(long_text_bytes(model, measure) for model in models)])


def attempt(model: RewardModel, num_tokens: int, measure: Callable[[RewardModel, int], int]) -> int | None:
    """The peak bytes of a batch of `num_tokens` tokens; None if it does not fit in memory."""
    try:
        return measure(model, num_tokens)
    except Exception as error:
        if not is_out_of_memory(error):
            raise ModelRefusedError(
                f"{model.checkpoint.source} fails on a batch of {num_tokens} tokens ({one_line(error)})"
            ) from error
    free_memory(
        model.device
    )  # after the except block: the error's traceback keeps the failed forward pass's tensors alive
    return None


def long_text_bytes(model: RewardModel, measure: Callable[[RewardModel, int], int]) -> int:
    """The peak bytes of the model's longest text if it is longer than a batch; 0 if it is not, or does not fit."""
    longest = model.tokenization.max_length
    if longest <= model.max_batch_tokens or longest * model.flops_per_token > LONG_FORWARD_FLOPS:
        return 0
    num_bytes = attempt(model, longest, measure)
    if num_bytes is None:
        logger.warning(
            "%s: a text of %d tokens, the model's longest, does not fit on %s; set REWARD_MAX_LENGTH to what you send",
            model.name,
            longest,
            model.device,
        )
    return num_bytes or 0


def largest_batch(model: RewardModel, num_tokens: int) -> Batch:
    """A batch of `num_tokens` tokens in sequences without shared prefixes, each as long as the model allows."""
    rng = np.random.default_rng(0)
    longest = model.tokenization.max_length
    lengths = [longest] * (num_tokens // longest)
    if num_tokens % longest:
        lengths.append(num_tokens % longest)
    ids = [rng.integers(0, model.checkpoint.vocab_size, length) for length in lengths]
    sequences = scorable(model, [TokenSequence.of(each.tolist()) for each in ids])
    return Batch.of(sequences, [model.is_causal] * len(sequences))


def peak_bytes(model: RewardModel, num_tokens: int) -> int:
    """Computes a batch of `num_tokens` tokens on the model's GPU and returns its peak bytes."""
    batch = largest_batch(model, num_tokens)
    torch.cuda.synchronize(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    model.compute(batch)
    torch.cuda.synchronize(model.device)
    return torch.cuda.max_memory_allocated(model.device) - before
