"""TRL's GRPOTrainer with rewards from the service.

    python -m examples.grpo_trl [--policy DIRECTORY] [--url http://127.0.0.1:8000]

The five lines that matter are in `train`; the rest makes a policy and draws the curve.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from examples.policy import PROMPTS, load_policy
from reward_client.adapters.trl import reward_function


def train(
    url: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: str = "llama2",
    rendered: bool = False,
    conversational: bool = False,
    deadline_seconds: float = 180,
    trainer: type[Any] = GRPOTrainer,
    config: type[Any] = GRPOConfig,
    **options: Any,
) -> list[float]:
    """Trains the policy in place; the mean reward of each step. `options` are the trainer's own."""
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS] if conversational else PROMPTS
    with tempfile.TemporaryDirectory() as output:
        defaults = {
            "output_dir": output,
            "max_steps": 40,
            "num_generations": 16,
            "per_device_train_batch_size": 64,
            "max_completion_length": 8,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "seed": 0,
        }
        running = trainer(
            model=policy,
            processing_class=tokenizer,
            reward_funcs=reward_function(url, model=model, rendered=rendered, deadline_seconds=deadline_seconds),
            args=config(**defaults | options),
            train_dataset=Dataset.from_dict({"prompt": prompts * 64}),
        )
        running.train()
    return [entry["reward"] for entry in running.state.log_history if "reward" in entry]


def draw(rewards: list[float], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(range(1, len(rewards) + 1), rewards)
    axes.set(xlabel="step", ylabel="mean reward (raw score)", title="GRPO with rewards from reward-service")
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--url", default="http://127.0.0.1:8000")
    options.add_argument("--policy", help="a causal language model; by default a tiny untrained one")
    options.add_argument("--tokenizer", default="models/trunk", help="what the untrained policy writes with")
    options.add_argument("--model", default="llama2", choices=("llama2", "safety", "helpfulness"))
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--plot", type=Path, help="where the reward curve goes")
    given = options.parse_args()
    policy, tokenizer = load_policy(given.policy, given.tokenizer)
    rewards = train(given.url, policy, tokenizer, model=given.model, max_steps=given.steps)
    tenth = max(1, len(rewards) // 10)
    first, last = sum(rewards[:tenth]) / tenth, sum(rewards[-tenth:]) / tenth
    sys.stdout.write(f"mean reward: {first:.3f} over the first {tenth} steps, {last:.3f} over the last {tenth}\n")
    if given.plot:
        draw(rewards, given.plot)


if __name__ == "__main__":
    main()
