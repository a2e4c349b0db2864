"""The logistic function, its inverse and its logarithm, without overflow at either end."""

import math

import numpy as np

from app.rewards.types import Floats


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), elementwise, any shape. Accurate to a few units in the last place, even far below 0."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1.0 + small))


def probability(score: float) -> float:
    """`sigmoid` of one number, without numpy's overhead."""
    small = math.exp(-abs(score))
    return (1.0 if score >= 0 else small) / (1.0 + small)


def logit(p: float) -> float:
    """log(p / (1 - p)), the inverse of `probability`. `p` is in (0, 1); 0 and 1 raise ValueError or ZeroDivisionError."""
    return math.log(p / (1 - p))


@np.errstate(invalid="ignore")
def log_sigmoid(x: Floats) -> Floats:
    """log(1 / (1 + exp(-x))), elementwise, any shape: -200 gives -200, 200 gives -exp(-200), and NaN gives NaN."""
    return -np.logaddexp(0.0, -x)
