"""The margin ranking loss of preference pairs. Scores that are NaN give NaN."""

import numpy as np

from app.rewards.logistic import log_sigmoid, sigmoid
from app.rewards.types import Floats


@np.errstate(invalid="ignore")
def margin_ranking_loss(chosen: Floats, rejected: Floats, margin: Floats | float = 0.0) -> Floats:
    """L = -log sigmoid(r_chosen - r_rejected - m(r)), in nats, elementwise; all of one shape.

    Touvron et al. 2023, arXiv 2307.09288, equation 2. A difference of -200 gives 200, not infinity.
    """
    return -log_sigmoid(chosen - rejected - margin)


@np.errstate(invalid="ignore")
def margin_ranking_gradient(chosen: Floats, rejected: Floats, margin: Floats | float = 0.0) -> Floats:
    """dL/dr_chosen = -sigmoid(-(r_chosen - r_rejected - m(r))), elementwise; dL/dr_rejected is its negative."""
    return -sigmoid(-(chosen - rejected - margin))
