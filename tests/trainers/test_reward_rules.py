"""The service's rules against verl's and TRL's own functions, on the same numbers in float64.

TRL writes its rules inside the methods of its trainers; the test takes these statements from its source and runs them.
"""

import ast
import inspect
import math
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trl.trainer import grpo_trainer, rloo_trainer

from app.rewards.combination import Weighted
from app.rewards.kl import Estimator, kl_terms
from app.rewards.pipeline import Batch, RewardOptions, combine
from app.rewards.types import Floats, Indices
from app.rewards.whitening import WhitenStats, whiten
from tests.trainers.packages import importable, load
from tests.trainers.ray_stub import ray

SOURCE = np.random.default_rng(0)
NUM_GROUPS, GROUP_SIZE = 5, 4
WEIGHTS = (0.3, 0.7)


@pytest.fixture(scope="module")
def verl() -> Iterator[Any]:
    with ray() as stubs, importable("verl", stubs):
        yield load("verl.trainer.ppo.core_algos")


@pytest.fixture(scope="module")
def logprobs() -> tuple[Floats, Floats]:
    """Of the policy and the reference: usual ones, equal ones, and ratios that overflow exp."""
    policy = np.concatenate([-SOURCE.exponential(2.0, 500), [-1.0, -900.0, -1.0, -30.0, -0.5]])
    reference = np.concatenate([policy[:500] + SOURCE.normal(0, 1.5, 500), [-1.0, -1.0, -900.0, -0.5, -30.0]])
    return policy, np.minimum(reference, 0.0)


@pytest.fixture(scope="module")
def scores() -> dict[str, Floats]:
    """With deviations so large that each library's own epsilon beside the deviation does not matter."""
    return {
        "safety": SOURCE.normal(1e6, 3e6, NUM_GROUPS * GROUP_SIZE),
        "helpfulness": SOURCE.normal(-5e5, 1e6, NUM_GROUPS * GROUP_SIZE),
    }


def groups() -> Indices:
    return np.repeat(np.arange(NUM_GROUPS), GROUP_SIZE)


def sums_of_whitened(scores: dict[str, Floats]) -> Floats:
    """`combine` weighted with whiten_each, over groups."""
    none = np.zeros(len(groups()), np.bool_)
    batch = Batch(is_safety=none, unended=none, groups=groups(), logprobs=None)
    options = RewardOptions(beta=0.0, combination=Weighted(dict(zip(scores, WEIGHTS, strict=True)), whiten_each=True))
    return combine(batch, scores, options, None).whitened


# -- verl ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("k1", "kl"), ("k1", "k1"), ("abs", "abs"), ("mse", "mse"), ("k2", "k2"), ("low_var_kl", "low_var_kl")],
)
def test_the_estimators_are_verls(verl: Any, logprobs: tuple[Floats, Floats], ours: Estimator, theirs: str) -> None:
    expected = verl.kl_penalty(*map(torch.from_numpy, logprobs), theirs)
    assert kl_terms(*logprobs, ours).tolist() == pytest.approx(expected.tolist(), rel=1e-12, abs=1e-12)


def test_k3_is_verls_below_its_clamp(verl: Any, logprobs: tuple[Floats, Floats]) -> None:
    expected = verl.kl_penalty(*map(torch.from_numpy, logprobs), "k3").numpy()
    ours = kl_terms(*logprobs, "k3")
    assert (expected < 10).sum() > 400
    assert ours[expected < 10].tolist() == pytest.approx(expected[expected < 10].tolist(), rel=1e-9, abs=1e-12)
    assert (ours[expected == 10] >= 10).all()


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_verls(verl: Any, shift_mean: bool) -> None:
    values = SOURCE.normal(3, 2, 40)
    expected = verl.verl_F.masked_whiten(torch.from_numpy(values), torch.ones(40, dtype=torch.float64), shift_mean)
    ours = whiten(values, WhitenStats.of(values), shift_mean=shift_mean)
    assert ours.tolist() == pytest.approx(expected.tolist(), rel=1e-8, abs=1e-9)  # verl adds 1e-8 to the count


def test_whitened_sums_are_verls_gdpo(verl: Any, scores: dict[str, Floats]) -> None:
    count = len(groups())
    ones = torch.ones(count, 1)
    advantages, _ = verl.compute_gdpo_outcome_advantage(
        token_level_rewards=ones,
        response_mask=ones,
        index=groups(),
        config={"gdpo_reward_keys": list(scores), "gdpo_reward_weights": list(WEIGHTS)},
        non_tensor_batch=dict(scores),
        batch={"prompts": ones, "attention_mask": torch.ones(count, 2, dtype=torch.long)},
    )
    sums = sums_of_whitened(scores)
    ours = whiten(sums, WhitenStats.of(sums))  # GDPO's last step, over the batch
    assert ours.tolist() == pytest.approx(advantages[:, 0].tolist(), abs=1e-5)  # verl computes in float32


# -- TRL ----------------------------------------------------------------------------------------------------------------


def assigned(module: ModuleType, name: str, mentions: str) -> Any:
    """The expression that a trainer assigns to `name`, the one that mentions a variable; compiled."""
    tree = ast.parse(inspect.getsource(module))
    found = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == name
        and mentions in {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
    ]
    assert found, f"TRL no longer assigns {name}"
    return compile(ast.Expression(found[0]), module.__name__, "eval")


def branch(module: ModuleType, option: str) -> Any:
    """The statements under `== option` in an if; compiled."""
    found = [
        node.body
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Compare)
        and ast.unparse(node.test.comparators[0]) == repr(option)
    ]
    assert found, f"TRL has no branch for {option}"
    return compile(ast.Module(found[0], []), module.__name__, "exec")


def test_k3_is_trls_grpo(logprobs: tuple[Floats, Floats]) -> None:
    policy, reference = (torch.from_numpy(each[:500]) for each in logprobs)
    names = {"torch": torch, "per_token_logps": policy, "ref_per_token_logps": reference}
    expected: Tensor = eval(assigned(grpo_trainer, "per_token_kl", "ref_per_token_logps"), names)  # noqa: S307 - TRL's own statement
    ours = kl_terms(policy.numpy(), reference.numpy(), "k3")
    assert ours.tolist() == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)


def test_k1_is_trls_rloo(logprobs: tuple[Floats, Floats]) -> None:
    policy, reference = map(torch.from_numpy, logprobs)
    names = {"old_per_token_logps": policy, "ref_per_token_logps": reference}
    expected: Tensor = eval(assigned(rloo_trainer, "per_token_kl", "ref_per_token_logps"), names)  # noqa: S307 - TRL's own statement
    assert kl_terms(*logprobs, "k1").tolist() == expected.tolist()


def test_whitened_sums_are_trls_normalize_then_sum(scores: dict[str, Floats]) -> None:
    rewards = torch.from_numpy(np.stack(list(scores.values()), axis=1))
    names = {
        **vars(grpo_trainer),
        "self": SimpleNamespace(reward_funcs=[None] * 2, reward_weights=torch.tensor(WEIGHTS, dtype=torch.float64)),
        "rewards_per_func": rewards,
        "num_generations": GROUP_SIZE,
        "unscorable_mask": torch.isnan(rewards).all(dim=1),
        "device": rewards.device,
    }
    exec(branch(grpo_trainer, "normalize_then_sum"), names)  # noqa: S102 - TRL's own statements
    sums = sums_of_whitened(scores)
    assert sums.tolist() == pytest.approx(names["rewards"].tolist(), rel=1e-7)  # TRL corrects the variance in float32
    ours = whiten(sums, WhitenStats.of(sums))
    deviation = math.sqrt(WhitenStats.of(sums).variance[0])
    expected = names["advantages"] * (deviation + 1e-4) / deviation  # TRL adds 1e-4 to the deviation
    assert ours.tolist() == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-7)
