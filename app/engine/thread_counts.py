"""Checks that a model's scores are bitwise equal on every number of threads before that number may follow the load."""

import logging

import torch
from torch import Tensor

from app.engine.batch import Batch
from app.engine.first_layers import first_layers, states_for_bits
from app.engine.num_threads import ThreadChooser, ThreadLimit, candidates_below
from app.engine.reward_model import RewardModel
from app.engine.self_test import AFFORDABLE_FLOPS, batch_of_states

logger = logging.getLogger(__name__)


def follow_load(model: RewardModel, chooser: ThreadChooser) -> None:
    """Lets a model on the CPU use fewer threads while other processes are busy, unless the operator has set the number.

    Without this its self-test would take minutes on a busy machine. Call `keep_equal_counts` before the model serves.
    """
    limit = chooser.limit
    if model.device.type == "cpu" and not limit.is_fixed and (counts := candidates_below(limit.num_threads)):
        model.threads.follow(chooser, (limit.num_threads, *counts), model.layers)


def keep_equal_counts(model: RewardModel, limit: ThreadLimit) -> bool:
    """Removes the numbers of threads that change the model's bits from those that it may use. Returns whether all stayed.

    Call it after `select_plan`, before the model gets a prefix cache.
    """
    if model.device.type != "cpu":
        return True
    before = model.threads.counts
    model.threads.counts = equal_thread_counts(model, limit.num_threads) if before else (limit.num_threads,)
    if counts := model.threads.counts[1:]:
        logger.info("%s: threads while other processes are busy: %s", model.name, " or ".join(map(str, counts)))
    return not before or model.threads.counts == before


def equal_thread_counts(model: RewardModel, limit: int) -> tuple[int, ...]:
    """The numbers of threads up to `limit` on which the model gives the same bits as on `limit`, descending.

    Only `limit` if the comparison would take long for a large model, and on other devices than the CPU.
    """
    batch = batch_of_states(model)
    # Batches of several lengths, because libraries divide a tensor among the threads, and each part's remainder has bits
    # of its own.
    parts = [batch.part(indices) for indices in (range(len(batch)), range(6), [1, 7], [2, 3, 5], [0])]
    num_layers = first_layers(model)
    share = num_layers / len(model.layers) if num_layers else 1
    num_flops = sum(part.num_tokens for part in parts) * model.flops_per_token * share
    counts = candidates_below(limit)
    if not counts or model.device.type != "cpu" or num_flops > AFFORDABLE_FLOPS["cpu"]:
        return (limit,)
    states = {count: states_on(model, parts, count, num_layers) for count in (limit, *counts)}
    return (limit, *(count for count in counts if torch.equal(states[count], states[limit])))


def states_on(model: RewardModel, parts: list[Batch], num_threads: int, num_layers: int) -> Tensor:
    with model.threads.fixed_at(num_threads):
        return torch.cat([states_for_bits(model, part, num_layers) for part in parts])
