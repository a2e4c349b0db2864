"""Llama 2's R_c: whether a response's reward is its safety or its helpfulness score."""

from functools import lru_cache
from typing import Literal, overload

import numpy as np

from app.rewards.logistic import logit
from app.rewards.types import Bools, Floats

ThresholdOn = Literal["probability", "score"]


@overload
def selects_safety(
    safety: float, is_safety: bool, threshold: float = 0.15, threshold_on: ThresholdOn = "probability"
) -> bool: ...
@overload
def selects_safety(
    safety: Floats, is_safety: Bools | bool, threshold: float = 0.15, threshold_on: ThresholdOn = "probability"
) -> Bools: ...
def selects_safety(
    safety: Floats | float,
    is_safety: Bools | bool,
    threshold: float = 0.15,
    threshold_on: ThresholdOn = "probability",
) -> Bools | bool:
    """Whether R_c is the safety score: is_safety(p) or R_s(g|p) < threshold, strictly. Elementwise, or for one response.

    `safety` is the raw score. The threshold is a probability in (0, 1), as in the paper (Touvron et al. 2023, arXiv
    2307.09288, section 3.2.3), or, on the score, any real number.
    """
    return is_safety | (safety < threshold_score(threshold, threshold_on))


def select(
    safety: Floats,
    helpfulness: Floats,
    is_safety: Bools,
    threshold: float = 0.15,
    threshold_on: ThresholdOn = "probability",
) -> Floats:
    """R_c(g|p) = R_s(g|p) if is_safety(p) or R_s(g|p) < threshold, else R_h(g|p); raw scores, all of one shape.

    `helpfulness` may be NaN where the safety score is selected.
    """
    return np.where(selects_safety(safety, is_safety, threshold, threshold_on), safety, helpfulness)


@lru_cache(maxsize=256)
def threshold_score(threshold: float, threshold_on: ThresholdOn = "probability") -> float:
    """The raw score at the threshold: logit(0.15) = -1.7346, or the threshold itself where it is on the score."""
    return logit(threshold) if threshold_on == "probability" else threshold
