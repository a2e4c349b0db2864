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
