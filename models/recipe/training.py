"""How both models are trained at once: the options of `app.training.rated`, the trainer behind `reward-service train`."""

from typing import Any

import torch
from torch import nn

from app.training.base import with_lora
from app.training.rated.fit import Schedule
from app.training.rated.losses import Objective
from app.training.rated.model import RatedModel
from models.recipe.common import MODELS, SEED, bfloat16_is_faster
from models.recipe.groups import TASKS
from models.recipe.trunk import FILE

FROZEN, RANK = 18, 16
"""Layers of the trunk that are frozen, and the rank of the adapter on the others."""
MAX_BATCH_TOKENS = 2048
OBJECTIVE = Objective(TASKS, "small", pointwise="safety", across="safety")
SCHEDULE = Schedule(epochs=2.5, learning_rate=5e-4, head_learning_rate=2e-3, warmup=0.1, seed=SEED)


def load_model() -> RatedModel:
    """The trunk with adapters on its upper layers and a random head of an output per task."""
    from transformers import AutoModelForSequenceClassification, GgufConfig

    torch.manual_seed(SEED)
    net: Any = AutoModelForSequenceClassification.from_pretrained(
        MODELS / "trunk",
        gguf_file=FILE,
        quantization_config=GgufConfig(dequantize=True),
        num_labels=len(TASKS),
        dtype=torch.float32,
    )
    nn.init.normal_(net.score.weight, std=0.02)
    return RatedModel(
        with_lora(net, RANK, 2 * RANK, FROZEN),
        FROZEN,
        device=torch.device("cpu"),
        bfloat16=bfloat16_is_faster(),
        max_batch_tokens=MAX_BATCH_TOKENS,
    )
