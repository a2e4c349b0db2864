"""The options of a training run, and which of them must not change when the run is resumed."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from app.rewards.margins import MarginScheme

TooLong = Literal["drop", "error", "prompt", "left", "right"]
FULL_LEARNING_RATE, LORA_LEARNING_RATE = 1e-5, 1e-4
MAX_BATCH_TOKENS = 2048
"""Of rated groups, where --max-batch-tokens is not given."""
FREE_TO_CHANGE = {"base", "data", "out", "resume", "device"}
"""Options that a resumed run may change: the locations of files. The content of the data is compared instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    base: Path
    data: str
    out: Path
    margin_scheme: MarginScheme = "large"
    epochs: float = 1.0
    learning_rate: float | None = None
    batch_size: int = 16
    accumulate: int = 1
    gradient_checkpointing: bool = False
    max_length: int | None = None
    truncation: TooLong = "drop"
    held_out: float = 0.1
    freeze_layers: int = 0
    lora_rank: int = 0
    lora_alpha: int | None = None
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"
    save_steps: int | None = None
    resume: bool = False
    head_learning_rate: float | None = None
    pointwise: str | None = None
    rank_across_prompts: str | None = None
    max_batch_tokens: int | None = None
    adapter_only: bool = False

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or (LORA_LEARNING_RATE if self.lora_rank else FULL_LEARNING_RATE)

    @property
    def alpha(self) -> int:
        return self.lora_alpha or 2 * self.lora_rank

    @property
    def fixed(self) -> dict[str, Any]:
        """The options that determine the result, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in FREE_TO_CHANGE}


DEFAULTS = {field.name: field.default for field in fields(TrainOptions)}
