"""The test that a model passes before the number of its threads may follow the load: equal bits on each of them."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from app.engine.batch import Batch
from app.engine.first_layers import first_layers, states_for_bits
from app.engine.num_threads import ThreadChooser, ThreadLimit, candidates_below
from app.engine.processors import FreeProcessors
from app.engine.reward_model import SMALL_FORWARD_FLOPS, RewardModel
from app.engine.self_test import AFFORDABLE_FLOPS, batch_of_states

logger = logging.getLogger(__name__)


def follow_load(models: Sequence[RewardModel], limit: ThreadLimit) -> None:
    """Lets the models on CPU use fewer threads while other processes use the processors, unless the number is given.

    Call it before they get a prefix cache.
    """
    if not any(model.device.type == "cpu" for model in models):
        return
    logger.info("threads per forward pass on CPU: %d (%s)", limit.num_threads, limit.reason)
    chooser = ThreadChooser(limit, FreeProcessors())
    for model in models:
        counts = (limit.num_threads,) if limit.is_fixed else equal_thread_counts(model, limit.num_threads)
        model.threads.follow(chooser, counts, model.layers if len(counts) > 1 else [])
        if len(counts) > 1:
            logger.info("%s: %s threads while other processes are busy", model.name, " or ".join(map(str, counts[1:])))


def equal_thread_counts(model: RewardModel, limit: int) -> tuple[int, ...]:
    """The numbers of threads up to `limit` on which the model gives the same bits as on `limit`, falling.

    Only `limit` where a model on CPU is so large that the comparison would take long, and on other devices.
    """
    batch = batch_of_states(model)
    # Of several lengths: a library divides a tensor among the threads, and where its last vector ends decides the bits.
    parts = [batch.part(indices) for indices in (range(len(batch)), range(6), [1, 7], [2, 3, 5], [0])]
    num_layers = first_layers(model)
    share = num_layers / len(model.layers) if num_layers else 1
    num_flops = sum(part.num_tokens for part in parts) * model.flops_per_token * share
    counts = candidates_below(limit)
    if not counts or model.device.type != "cpu" or num_flops > AFFORDABLE_FLOPS["cpu"]:
        return (limit,)
    before = torch.get_num_threads()
    try:
        model.small_forward_flops = 0
        states = {count: states_on(model, parts, count, num_layers) for count in (limit, *counts)}
    finally:
        model.small_forward_flops = SMALL_FORWARD_FLOPS
        torch.set_num_threads(before)
    return (limit, *(count for count in counts if torch.equal(states[count], states[limit])))


def states_on(model: RewardModel, parts: list[Batch], num_threads: int, num_layers: int) -> Tensor:
    torch.set_num_threads(num_threads)
    return torch.cat([states_for_bits(model, part, num_layers) for part in parts])
