"""Order statistics of small samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Spread:
    """The median and the extremes of repeated measurements, in their unit."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Raises ValueError if there are no values."""
        return cls(percentile(values, 50), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """numpy's percentile, with linear interpolation; raises ValueError if there are no values."""
    if not values:
        raise ValueError("a percentile needs at least one value")
    return float(np.percentile(values, percent))
