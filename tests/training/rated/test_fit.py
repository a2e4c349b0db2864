"""The order of the groups and the schedule of a training on rated groups."""

import random

import pytest
import torch

from app.training.rated.fit import batches_of_epochs, rate_at, shuffled_batches
from app.training.rated.packed import Row

ROWS = [Row(torch.zeros(900), torch.zeros(900), torch.zeros(900), []) for _ in range(9)]


def seeded() -> random.Random:
    return random.Random(0)  # noqa: S311 - to be reproducible, not secret


def test_an_epoch_has_every_prompt_once_in_another_order_each_time() -> None:
    rng = seeded()
    first, second = (shuffled_batches(ROWS, 2048, rng) for _ in range(2))
    assert sorted(index for batch in first for index in batch) == list(range(9))
    assert first != second


def test_a_share_of_an_epoch_has_that_share_of_its_batches() -> None:
    whole, part = batches_of_epochs(ROWS, 1.5, 900, seeded())
    assert (len(whole), len(part)) == (9, 5)
    assert batches_of_epochs(ROWS, 2, 900, seeded())[0] == whole


def test_the_rate_warms_up_and_ends_at_a_tenth() -> None:
    rates = [rate_at(step, 100, 0.1) for step in range(101)]
    assert max(rates) == 1
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.1)
    assert rate_at(0, 10, 0) == 1
