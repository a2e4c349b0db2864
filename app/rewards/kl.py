"""Estimators of the divergence between the policy and its reference, token by token."""

from typing import Literal

import numpy as np

from app.rewards.types import Floats

Estimator = Literal["k1", "k2", "k3", "abs", "mse", "low_var_kl", "pointwise"]
LOW_VAR_CLAMP = 10.0


@np.errstate(over="ignore", invalid="ignore")
def kl_terms(policy: Floats, reference: Floats, estimator: Estimator = "k1", clip: float | None = None) -> Floats:
    """One estimate of D_KL(policy || reference) per token, in nats; arrays of one shape in, the same shape out.

    With x = log pi - log pi_0, clamped to [-clip, clip] first:

        k1          x                                            unbiased, may be negative
        k2, mse     x^2 / 2
        k3          exp(-x) - 1 + x                              unbiased, never negative; overflows for x below -709
        abs         |x|
        low_var_kl  min(k3, 10)
        pointwise   -pi_0 x = pi_0 (log pi_0 - log pi)           a term of D_KL(pi_0 || pi), the other direction

    k1 to k3 are Schulman's (2020, "Approximating KL divergence"), `abs`, `mse` and `low_var_kl` verl's `kl_penalty`, and
    `pointwise` is torch's `kl_div(log pi, log pi_0, log_target=True)`.
    """
    x: Floats = policy - reference
    if clip is not None:
        x = np.clip(x, -clip, clip)
    match estimator:
        case "k1":
            return x
        case "k2" | "mse":
            return x**2 / 2
        case "k3":
            return np.expm1(-x) + x
        case "abs":
            return np.abs(x)
        case "low_var_kl":
            return np.minimum(np.expm1(-x) + x, LOW_VAR_CLAMP)
        case "pointwise":
            return -np.exp(reference) * x
