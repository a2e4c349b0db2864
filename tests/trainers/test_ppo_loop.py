"""A plain PPO loop that trains on the token rewards of /ppo-reward."""

from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from examples.ppo_loop import train
from reward_client import Limits, RewardClient


def test_the_mean_selected_score_of_a_ppo_loop_rises(
    url: str, policy: tuple[LlamaForCausalLM, PreTrainedTokenizerBase]
) -> None:
    with RewardClient(url) as client:
        scores = train(client, *policy)
    assert sum(scores[-8:]) / 8 > sum(scores[:8]) / 8 + 1


def test_splitting_the_batch_over_requests_changes_no_reward(
    url: str, policy: tuple[LlamaForCausalLM, PreTrainedTokenizerBase]
) -> None:
    """Whitening stays global, so that the same seed gives the same curve."""
    start = {name: weight.clone() for name, weight in policy[0].state_dict().items()}
    with RewardClient(url) as client:
        whole = train(client, *policy, num_steps=3)
    policy[0].load_state_dict(start)
    with RewardClient(url, limits=Limits(max_items=10)) as client:
        split = train(client, *policy, num_steps=3)
    assert all(abs(a - b) < 1e-4 for a, b in zip(whole, split, strict=True))
