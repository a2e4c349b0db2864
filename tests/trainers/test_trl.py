"""TRL's own trainers, a few steps each: the mean reward rises."""

import tempfile
from typing import Any

import httpx
import pytest
import trl
from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from examples.grpo_trl import train
from examples.policy import PROMPTS
from reward_client.adapters.trl import gdpo_reward_functions, reward_function
from tests.conftest import Serve
from tests.trainers.conversations import CONVERSATIONS, check_equal, expected

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


@pytest.mark.parametrize("side", ["`reward_function`", "`reward_function`, token ids"])
def test_a_trainer_gets_the_scores_of_the_conversations(
    client: httpx.Client, url: str, policy: Policy, side: str
) -> None:
    """TRL's own call of its reward functions, with the completions' ids as a policy generates them."""
    tokenizer = policy[1] if "ids" in side else None
    trainer = make_trainer(*policy, reward_function(url, truncation="left", tokenizer=tokenizer), max_steps=1)
    chats = list(CONVERSATIONS.values())
    prompts, completions = [chat[:-1] for chat in chats], [chat[-1:] for chat in chats]
    ids = [policy[1](f"{chat[-1]['content']}<|im_end|>", add_special_tokens=False)["input_ids"] for chat in chats]
    rewards = trainer._calculate_rewards([{"prompt": prompt} for prompt in prompts], prompts, completions, ids)
    check_equal(
        f"TRL | {trl.__version__} | `GRPOTrainer._calculate_rewards` | {side}",
        dict(zip(CONVERSATIONS, rewards[:, 0].tolist(), strict=True)),
        {name: expected(client, chat) for name, chat in CONVERSATIONS.items()},
    )


def test_gdpo_asks_once_per_batch(client: httpx.Client, url: str, policy: Policy) -> None:
    """TRL's `normalize_then_sum` over two functions; the server counts the requests."""
    before = num_requests(client, "/score")
    options: dict[str, Any] = {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [0.3, 0.7]}
    trainer = make_trainer(*policy, gdpo_reward_functions(url), max_steps=3, **options)
    trainer.train()
    assert num_requests(client, "/score") - before == 3
    (*logs, _) = trainer.state.log_history
    assert len(logs) == 3
    for entry in logs:
        scores = [entry["rewards/safety/mean"], entry["rewards/helpfulness/mean"]]
        logged = [entry["reward_service/safety_score"], entry["reward_service/helpfulness_score"]]
        assert scores == pytest.approx(logged, abs=1e-4)
        assert entry["reward"] == pytest.approx(0.3 * scores[0] + 0.7 * scores[1], abs=1e-4)
        assert entry["reward_service/truncated"] == 0
    columns = trainer._logs["extra"]
    assert set(columns) == {f"reward_service/{name}" for name in ("safety_score", "helpfulness_score", "truncated")}
    assert set(map(len, columns.values())) == {len(trainer._logs["completion"])}


def num_requests(client: httpx.Client, route: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("reward_requests_total{") and f'route="{route}"' in line]
    return sum(float(line.split()[-1]) for line in found)


def make_trainer(
    policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, reward_funcs: Any, **options: Any
) -> Any:
    with tempfile.TemporaryDirectory() as output:
        defaults: dict[str, Any] = {
            "output_dir": output,
            "num_generations": 4,
            "per_device_train_batch_size": 16,
            "max_completion_length": 8,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "use_cpu": True,
        }
        return trl.GRPOTrainer(
            model=policy,
            processing_class=tokenizer,
            reward_funcs=reward_funcs,
            args=trl.GRPOConfig(**defaults | options),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS * 64}),
        )


def test_a_service_that_is_gone_ends_the_run_and_gives_no_zero(serve: Serve, policy: Policy) -> None:
    with serve() as server:
        url = str(server.base_url)
    with pytest.raises(Exception, match="ConnectError"):
        train(url, *policy, use_cpu=True, max_steps=1, deadline_seconds=3)
