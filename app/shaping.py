"""The arithmetic of Llama 2's rewards: margin ranking loss, selection, logit, whitening, KL penalty.

Pure functions of fp64 tensors (Touvron et al. 2023, arXiv 2307.09288, sections 3.2.2 and 3.2.3); nothing here knows
of models, requests or settings. A *score* is the head's unbounded output, a *probability* its sigmoid. Everything
stays in score space, where nothing saturates: `probability < t` is `score < logit(t)`, and the LOGIT of a selected
probability is the selected score itself.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Rating = Literal["significantly_better", "better", "slightly_better", "negligibly_better"]
MarginScheme = Literal["small", "large"]
Estimator = Literal["k1", "k2", "k3"]

MARGINS: dict[MarginScheme, dict[Rating, float]] = {
    "small": {"significantly_better": 1.0, "better": 2 / 3, "slightly_better": 1 / 3, "negligibly_better": 0.0},
    "large": {"significantly_better": 3.0, "better": 2.0, "slightly_better": 1.0, "negligibly_better": 0.0},
}
"""m(r) of Llama 2's table 27; "unsure" pairs are negligibly better."""

WHITEN_EPS = 1e-8


def margin_ranking_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """L = -log sigmoid(r_chosen - r_rejected - m(r)), elementwise (Llama 2, equation 2).

    Through `logsigmoid`, never the log of a sigmoid: a difference of -200 gives 200, not infinity.
    """
    return -logsigmoid(chosen - rejected - margin)


def margin_ranking_gradient(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """dL/dr_chosen = -sigmoid(-(r_chosen - r_rejected - m(r))), elementwise; dL/dr_rejected is its negative."""
    return -torch.sigmoid(-(chosen - rejected - margin))


def logit(probability: Tensor) -> Tensor:
    """log(p / (1 - p)), the inverse of sigmoid."""
    return torch.logit(probability)


def selects_safety(safety: Tensor, is_safety: Tensor, threshold: float = 0.15) -> Tensor:
    """Whether R_c is the safety model's: is_safety(p) or sigmoid(score) < threshold, strictly; bool, elementwise."""
    below = safety < logit(torch.tensor(threshold, dtype=torch.float64))
    return is_safety | below


def select(safety: Tensor, helpfulness: Tensor, is_safety: Tensor, threshold: float = 0.15) -> Tensor:
    """R_c(g|p) = R_s(g|p) if is_safety(p) or R_s(g|p) < 0.15, else R_h(g|p) (Llama 2, section 3.2.3), as scores."""
    return torch.where(selects_safety(safety, is_safety, threshold), safety, helpfulness)


@dataclass(frozen=True, slots=True)
class WhitenStats:
    """Count, mean and sum of squared deviations: enough to whiten, and to merge with those of other batches."""

    count: int
    mean: float
    m2: float

    @classmethod
    def of(cls, values: Tensor) -> "WhitenStats":
        """The statistics of a vector with at least one value."""
        mean = values.mean()
        return cls(values.numel(), float(mean), float(((values - mean) ** 2).sum()))

    @property
    def variance(self) -> float:
        """The unbiased variance, m2 / (count - 1); needs a count of 2."""
        return self.m2 / (self.count - 1)


def whiten(values: Tensor, stats: WhitenStats, *, shift_mean: bool = True) -> Tensor:
    """(x - mean) * rsqrt(var + 1e-8), elementwise, `+ mean` again where `shift_mean` is False.

    `var` is unbiased, so `stats.count` must be at least 2; the caller says so to the user.
    """
    whitened: Tensor = (values - stats.mean) * (stats.variance + WHITEN_EPS) ** -0.5
    return whitened if shift_mean else whitened + stats.mean


def kl_terms(
    policy_logprobs: Tensor, reference_logprobs: Tensor, estimator: Estimator = "k1", clip: float | None = None
) -> Tensor:
    """One estimate of D_KL(policy || reference) per token, of the inputs' shape.

    With x = log pi - log pi_0, clamped to [-clip, clip] first: k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x
    (Schulman 2020, "Approximating KL divergence"). k1 is unbiased and may be negative, k3 overflows for x below -709.
    """
    x: Tensor = policy_logprobs - reference_logprobs
    if clip is not None:
        x = x.clamp(-clip, clip)
    match estimator:
        case "k1":
            return x
        case "k2":
            return x**2 / 2
        case "k3":
            return torch.expm1(-x) + x


def token_rewards(whitened: float, kl: Tensor, counted: Tensor, beta: float) -> Tensor:
    """-beta * kl_t at each counted token, `whitened` on top of the last of them, 0 elsewhere; sums to the reward.

    `kl` and `counted` (bool) have shape (tokens,), with at least one counted token.
    """
    rewards = torch.where(counted, -beta * kl, 0.0)
    rewards[counted.nonzero()[-1]] += whitened
    return rewards
