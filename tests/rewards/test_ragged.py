"""Token rewards: where they stand and what they sum to."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.rewards.ragged import Logprobs, token_rewards
from app.rewards.types import Floats

fast = settings(max_examples=50, deadline=None)


def fp64(*values: float) -> Floats:
    return np.array(values, np.float64)


def row(counted: list[bool]) -> Logprobs:
    """One item whose tokens are counted so."""
    nothing = np.zeros(len(counted))
    return Logprobs(nothing, nothing, np.array(counted), np.array([0]), np.array([0]))


def test_token_rewards_stand_at_counted_tokens_with_the_score_at_the_last() -> None:
    one = row([False, True, True, False])
    rewards = token_rewards(fp64(2.0), fp64(9.0, 0.5, -1.0, 9.0), one, beta=0.1)
    assert rewards.tolist() == pytest.approx([0.0, -0.05, 2.1, 0.0])


@given(
    st.floats(-5, 5), st.lists(st.tuples(st.floats(-10, 10), st.booleans()), min_size=1, max_size=30), st.floats(0, 1)
)
@fast
def test_token_rewards_sum_to_the_reward(whitened: float, tokens: list[tuple[float, bool]], beta: float) -> None:
    tokens = [*tokens, (0.25, True)]
    kl, one = fp64(*(term for term, _ in tokens)), row([keep for _, keep in tokens])
    rewards = token_rewards(fp64(whitened), kl, one, beta)
    reward = whitened - beta * math.fsum(term for term, keep in tokens if keep)
    assert rewards.shape == kl.shape
    assert rewards.sum().item() == pytest.approx(reward, abs=1e-9)
    assert not rewards[~one.counted].any()


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9).filter(any), min_size=1, max_size=9), st.data())
@fast
def test_rows_are_as_each_alone(masks: list[list[bool]], data: st.DataObject) -> None:
    sizes = [len(mask) for mask in masks]
    kl = np.array(data.draw(st.lists(st.floats(-9, 9), min_size=sum(sizes), max_size=sum(sizes))))
    starts = np.cumsum([0, *sizes[:-1]])
    together = Logprobs(kl, kl, np.concatenate([np.array(mask) for mask in masks]), starts, np.arange(len(masks)))
    scores = np.arange(1.0, len(masks) + 1)
    rewards = token_rewards(scores, kl, together, beta=0.5)
    for i, (start, mask) in enumerate(zip(starts.tolist(), masks, strict=True)):
        own = slice(start, start + len(mask))
        assert rewards[own].tolist() == token_rewards(scores[i : i + 1], kl[own], row(mask), beta=0.5).tolist()
        assert together.num_counted[i] == sum(mask)
        assert together.sums(kl)[i] == pytest.approx(math.fsum(kl[own]), abs=1e-12)
