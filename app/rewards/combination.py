"""Four rules that combine several models' scores of a response into one."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.rewards.selection import ThresholdOn
from app.rewards.types import Floats

LLAMA2_MODELS = ("safety", "helpfulness")
"""The models that Llama 2's rule and the Lagrangian use."""


@dataclass(frozen=True, slots=True)
class Llama2:
    """R_c: the safety score if the prompt is a safety prompt or the score is below the threshold, else the helpfulness score."""

    threshold: float = 0.15
    threshold_on: ThresholdOn = "probability"

    @property
    def models(self) -> tuple[str, ...]:
        return LLAMA2_MODELS


@dataclass(frozen=True, slots=True)
class Weighted:
    """R = sum over the models m of w_m R_m; the R_m are raw scores, or whitened ones with `whiten_each`.

    With `whiten_each` over the groups of one prompt, it is the decoupled normalization of GDPO (Liu et al. 2026, arXiv
    2601.05242), whose last step, a normalization of the sums over the batch, is left to the trainer.
    """

    weights: Mapping[str, float]
    whiten_each: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.weights)

    def parts(self, scores: Mapping[str, Floats]) -> dict[str, Floats]:
        """The terms of the sum; (items,) each."""
        return {name: weight * scores[name] for name, weight in self.weights.items()}


def lagrangian(multiplier: float) -> Weighted:
    """R = (R_h - lambda c) / (1 + lambda) with the cost c = -R_s, and lambda >= 0.

    Safe RLHF (Dai et al. 2023, arXiv 2310.12773), where reward and cost share one objective that is normalized by
    1 + lambda. It is the weighted sum with the weights lambda / (1 + lambda) and 1 / (1 + lambda).
    """
    return Weighted({"safety": multiplier / (1 + multiplier), "helpfulness": 1 / (1 + multiplier)})


@dataclass(frozen=True, slots=True)
class Worst:
    """R = min over the models m of R_m, which are whitened scores; a tie goes to the first model.

    Worst-case optimization over reward models (Coste et al. 2023, arXiv 2310.02743), on scores with a common scale.
    """

    models: tuple[str, ...] = LLAMA2_MODELS


Combination = Llama2 | Weighted | Worst


def whitens_each(rule: Combination) -> bool:
    """Whether each model's scores are whitened before they are combined."""
    return isinstance(rule, Worst) or (isinstance(rule, Weighted) and rule.whiten_each)
