"""A PPO loop of your own: the service selects, whitens and subtracts the KL penalty, the loop trains on token rewards.

    python -m examples.ppo_loop [--policy DIRECTORY] [--url http://127.0.0.1:8000]

Clipped PPO without a value network: rewards are whitened, so the return of a token is its advantage.
"""

import argparse
import copy
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from examples.policy import PROMPTS, load_policy
from reward_client import RewardClient


@dataclass(frozen=True)
class Rollout:
    sequences: Tensor  # (items, prompt + response) left-padded prompts, then responses
    attention: Tensor  # (items, prompt + response)
    counted: Tensor  # (items, response) True up to and including EOS
    responses: list[str]
    ended: list[bool]

    @property
    def num_response_tokens(self) -> int:
        return self.counted.shape[1]


@torch.no_grad()
def sample(policy: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new: int) -> Rollout:
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    prompt_ids, attention = batch["input_ids"], batch["attention_mask"]
    sequences: Tensor = policy.generate(
        prompt_ids, attention_mask=attention, do_sample=True, top_k=0, max_new_tokens=max_new
    )
    response = sequences[:, prompt_ids.shape[1] :]
    is_eos = response == tokenizer.eos_token_id
    counted = is_eos.cumsum(1) - is_eos.long() == 0
    return Rollout(
        sequences,
        torch.cat([attention, counted.long()], 1),
        counted,
        tokenizer.batch_decode(torch.where(counted, response, tokenizer.pad_token_id), skip_special_tokens=True),
        is_eos.any(1).tolist(),
    )


def logprobs(policy: Any, rollout: Rollout) -> Tensor:
    """log pi of each response token; (items, response)."""
    logits = policy(rollout.sequences, attention_mask=rollout.attention).logits[:, :-1].float()
    chosen = rollout.sequences[:, 1:, None]
    picked: Tensor = logits.log_softmax(-1).gather(-1, chosen)[:, -rollout.num_response_tokens :, 0]
    return picked


def train(
    client: RewardClient,
    policy: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_steps: int = 40,
    num_samples: int = 16,
    max_new_tokens: int = 8,
    beta: float = 0.01,
    learning_rate: float = 1e-2,
    clip: float = 0.2,
    num_epochs: int = 2,
) -> list[float]:
    """Trains the policy in place; the mean selected score of each step."""
    torch.manual_seed(0)
    reference = copy.deepcopy(policy).eval()
    optimizer = torch.optim.AdamW(policy.parameters(), learning_rate, weight_decay=0)
    prompts = PROMPTS * num_samples
    curve = []
    for _ in range(num_steps):
        rollout = sample(policy, tokenizer, prompts, max_new_tokens)
        with torch.no_grad():
            old, anchor = logprobs(policy, rollout), logprobs(reference, rollout)
        answer = client.ppo_reward(
            [
                {"prompt": prompt, "response": response, "ended": ended}
                for prompt, response, ended in zip(prompts, rollout.responses, rollout.ended, strict=True)
            ],
            policy_logprobs=old,
            reference_logprobs=anchor,
            mask=rollout.counted,
            beta=beta,
            token_rewards=True,
        )
        returns = torch.tensor(answer.token_rewards).flip(1).cumsum(1).flip(1)  # (items, response)
        for _ in range(num_epochs):
            ratio = (logprobs(policy, rollout) - old).exp()
            gain = torch.minimum(ratio * returns, ratio.clamp(1 - clip, 1 + clip) * returns)
            loss = -gain[rollout.counted].mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
        curve.append(sum(result.selected_score or 0.0 for result in answer.results) / len(prompts))
    return curve


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--url", default="http://127.0.0.1:8000")
    options.add_argument("--policy", help="a causal language model; by default a tiny untrained one")
    options.add_argument("--tokenizer", default="models/trunk", help="what the untrained policy writes with")
    options.add_argument("--steps", type=int, default=40)
    given = options.parse_args()
    policy, tokenizer = load_policy(given.policy, given.tokenizer)
    with RewardClient(given.url) as client:
        for step, score in enumerate(train(client, policy, tokenizer, num_steps=given.steps), 1):
            sys.stdout.write(f"step {step:3d}  mean selected score {score:8.3f}\n")


if __name__ == "__main__":
    main()
