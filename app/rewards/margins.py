"""Llama 2's margins: by how much the chosen response should lead, given how much better an annotator found it.

Does not import numpy, so that the command line starts quickly.
"""

from typing import Literal

Rating = Literal["significantly_better", "better", "slightly_better", "negligibly_better"]
MarginScheme = Literal["small", "large"]

MARGINS: dict[MarginScheme, dict[Rating, float]] = {
    "small": {"significantly_better": 1.0, "better": 2 / 3, "slightly_better": 1 / 3, "negligibly_better": 0.0},
    "large": {"significantly_better": 3.0, "better": 2.0, "slightly_better": 1.0, "negligibly_better": 0.0},
}
"""m(r) in score units (Touvron et al. 2023, arXiv 2307.09288, table 27). "Unsure" pairs are negligibly better."""

LARGEST_DIFFERENCE = 4.0
"""Of two ratings from 1 to 5."""


def rating_margin(difference: float, scheme: MarginScheme) -> float:
    """m(d) in score units for two responses rated d apart on a scale from 1 to 5; d may be a fraction.

    A difference of 1, 2, 3 or 4 has the margin of negligibly, slightly, just or significantly better in the same table; between
    them it is linear: m(d) = M * clip((d - 1) / 3, 0, 1), M the scheme's largest margin.
    """
    share = (difference - 1) / (LARGEST_DIFFERENCE - 1)
    return MARGINS[scheme]["significantly_better"] * min(1.0, max(0.0, share))
