"""Process rewards: equal to the sum written out step by step, and part of what the tokens sum to."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.rewards.combination import Weighted
from app.rewards.pipeline import Batch, RewardOptions, compute_rewards
from app.rewards.process import StepRewards
from app.rewards.ragged import Logprobs

values = st.floats(-10, 10)


@st.composite
def responses(draw: st.DrawFn) -> list[tuple[int, list[tuple[int, float]]]]:
    """Per response, its number of tokens, and the end and reward of each step."""
    rows = []
    for num_tokens in draw(st.lists(st.integers(1, 9), min_size=1, max_size=5)):
        ends = draw(st.sets(st.integers(0, num_tokens - 1)))
        rows.append((num_tokens, [(end, draw(values)) for end in sorted(ends)]))
    return rows


@given(responses(), st.floats(-3, 3), st.floats(0, 1))
def test_each_step_is_added_to_its_token_and_to_the_reward(
    rows: list[tuple[int, list[tuple[int, float]]]], weight: float, beta: float
) -> None:
    sizes = np.array([num_tokens for num_tokens, _ in rows])
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(0)
    policy, reference = -rng.random((2, sizes.sum()))
    logprobs = Logprobs(policy, reference, np.ones(sizes.sum(), np.bool_), starts, np.arange(len(rows)))
    flat = [
        (r, start + end, i) for i, (start, (_, steps)) in enumerate(zip(starts, rows, strict=True)) for end, r in steps
    ]
    columns = list(zip(*flat, strict=True)) if flat else [(), (), ()]
    steps = StepRewards(np.array(columns[0], float), np.array(columns[1], int), np.array(columns[2], int))
    scores: dict[str, np.ndarray] = {"safety": rng.normal(size=len(rows)), "helpfulness": rng.normal(size=len(rows))}
    options = RewardOptions(
        beta=beta,
        combination=Weighted({"safety": 0.5, "helpfulness": 0.5}),
        whitens=False,
        token_rewards=True,
        process_weight=weight,
    )
    zeros = np.zeros(len(rows), int)

    def rewards(given: StepRewards | None) -> tuple[np.ndarray, np.ndarray]:
        batch = Batch(is_safety=zeros > 0, unended=zeros > 0, groups=zeros, logprobs=logprobs, steps=given)
        result = compute_rewards(batch, scores, options)
        assert result.penalty is not None
        assert result.penalty.token_rewards is not None
        return result.reward, result.penalty.token_rewards

    (plain, plain_tokens), (with_steps, tokens) = rewards(None), rewards(steps)
    expected, expected_tokens = plain.copy(), plain_tokens.copy()
    for i, (start, (_, own)) in enumerate(zip(starts, rows, strict=True)):
        for end, r in own:
            expected[i] += weight * r
            expected_tokens[start + end] += weight * r
    np.testing.assert_allclose(with_steps, expected, atol=1e-12)
    np.testing.assert_allclose(tokens, expected_tokens, atol=1e-12)
    np.testing.assert_allclose(np.add.reduceat(tokens, starts), with_steps, atol=1e-10)
