"""Checks that servers computed the same scores; otherwise their speeds are not comparable."""

import math
from collections.abc import Mapping, Sequence

TOLERANCE = 1e-4


class DisagreementError(Exception):
    """Two servers, or a server and the reference, gave one text different scores."""


def largest_difference(scores: Mapping[str, Sequence[float]]) -> float:
    """Return the largest difference between any two of the score lists, text by text.

    Raises DisagreementError beyond TOLERANCE (absolute) and for a score that is not finite, naming the text and every score.
    """
    lengths = {len(values) for values in scores.values()}
    if len(lengths) > 1:
        raise DisagreementError(
            f"the numbers of scores differ: { {name: len(values) for name, values in scores.items()} }"
        )
    largest = 0.0
    for index, values in enumerate(zip(*scores.values(), strict=True)):
        difference = max(values) - min(values)
        if difference > TOLERANCE or not all(map(math.isfinite, values)):
            told = ", ".join(f"{name} {value:.6f}" for name, value in zip(scores, values, strict=True))
            raise DisagreementError(f"text {index} differs by {difference:.2e}, more than {TOLERANCE:g}: {told}")
        largest = max(largest, difference)
    return largest
