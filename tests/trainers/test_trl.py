"""TRL's own trainers, a few steps each: the mean reward rises."""

from typing import Any

import pytest
import trl
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from examples.grpo_trl import train
from tests.conftest import Serve

pytestmark = pytest.mark.filterwarnings("default")  # TRL and transformers warn of each other's deprecations

Policy = tuple[LlamaForCausalLM, PreTrainedTokenizerBase]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("trainer", "config"), [(trl.GRPOTrainer, trl.GRPOConfig), (trl.RLOOTrainer, trl.RLOOConfig)], ids=["GRPO", "RLOO"]
)
def test_the_mean_reward_of_a_trl_run_rises(url: str, policy: Policy, trainer: type[Any], config: type[Any]) -> None:
    rewards = train(url, *policy, rendered=True, trainer=trainer, config=config, beta=0.0, use_cpu=True)
    assert len(rewards) == 40
    assert mean(rewards[-8:]) > mean(rewards[:8]) + 1


def test_messages_are_rewarded_as_well_as_strings(url: str, policy: Policy) -> None:
    rewards = train(
        url,
        *policy,
        model="helpfulness",
        conversational=True,
        use_cpu=True,
        max_steps=2,
        per_device_train_batch_size=16,
    )
    assert len(rewards) == 2


def test_a_service_that_is_gone_ends_the_run_and_gives_no_zero(serve: Serve, policy: Policy) -> None:
    with serve() as server:
        url = str(server.base_url)
    with pytest.raises(Exception, match="ConnectError"):
        train(url, *policy, use_cpu=True, max_steps=1, deadline_seconds=3)
