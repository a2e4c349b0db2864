"""Estimates the memory of a long text's forward pass on the CPU, so that a text that does not fit is rejected beforehand.

On a GPU a failed allocation raises an exception, and the batch is split. On the CPU, Linux overcommits memory and then kills
the process, with every request in it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from app.engine.units import byte_size

if TYPE_CHECKING:
    from app.engine.reward_model import RewardModel

WIDE_TENSORS = 4
"""How many tensors as wide as the widest matrix exist at one time."""
HIDDEN_TENSORS = 8
"""How many tensors of the hidden size exist at one time."""
HEAD_BYTES = 16
"""Per token and hidden dimension: the states in float64 and their products, if every token's score is wanted."""
INDEX_BYTES = 2_000
"""Per token: indices, and the mask of a block of queries."""
STATE_TENSORS = 6
"""For a state-space layer, how many float32 tensors of size hidden * state exist at one time."""
EAGER_PAIR_BYTES = 32
"""Per head and pair of tokens, if attention stores its weights."""
MASK_PAIR_BYTES = 5
"""Per pair of tokens, if attention stores only a mask; one number of the model's dtype comes on top."""
MAX_FREE_FRACTION = 0.9
"""The fraction of the free memory that one forward pass may take."""


@dataclass(frozen=True, slots=True)
class ForwardMemory:
    """A forward pass of n tokens takes about `per_token` n + `per_pair` n^2 bytes."""

    per_token: int
    per_pair: int
    unchecked_tokens: int
    """Texts up to this length are always computed: usual batches are as long."""
    max_length: int
    free_bytes: Callable[[], int | None]
    """The bytes that are free now; None if unknown."""

    @classmethod
    def of(cls, model: "RewardModel", free_bytes: Callable[[], int | None]) -> "ForwardMemory":
        """The estimate for a model whose execution path is chosen. Texts that fit a usual batch are not checked."""
        return cls(
            per_token(model),
            per_pair(model) if model.plan.path != "packed" else 0,
            model.max_batch_tokens,
            model.tokenization.max_length,
            free_bytes,
        )

    def find_fault(self, num_tokens: int) -> str | None:
        """Why a text of `num_tokens` tokens is rejected; None if it fits."""
        if num_tokens <= self.unchecked_tokens:
            return None
        wanted, free = self.bytes_for(num_tokens), self.free_bytes()
        if free is None or wanted <= free * MAX_FREE_FRACTION:
            return None
        return (
            f"has {num_tokens} tokens, within the limit of {self.max_length}, but its forward pass takes about "
            f"{byte_size(wanted)} of memory and {byte_size(free)} is free; shorten it, or set REWARD_MAX_LENGTH to "
            f"{self.tokens_in(int(free * MAX_FREE_FRACTION))} or less to have longer texts rejected or truncated"
        )

    def bytes_for(self, num_tokens: int) -> int:
        return self.per_token * num_tokens + self.per_pair * num_tokens**2

    def tokens_in(self, num_bytes: int) -> int:
        """The most tokens that fit, rounded down to two digits, but at least `unchecked_tokens`."""
        most = num_bytes // self.per_token
        if self.per_pair:
            root = math.isqrt(self.per_token**2 + 4 * self.per_pair * num_bytes)
            most = (root - self.per_token) // (2 * self.per_pair)
        unit: int = 10 ** max(len(str(most)) - 2, 0)
        return max(most // unit * unit, self.unchecked_tokens)


def per_token(model: "RewardModel") -> int:
    """Bytes per token."""
    config: Any = model.net.config.get_text_config()
    itemsize: int = model.dtype.itemsize
    widest = max((int(max(matrix.shape[-2:])) for matrix in matrices_of(model.trunk)), default=0)
    widest *= first_of(config, "num_experts_per_tok") or 1
    hidden: int = model.net.get_input_embeddings().embedding_dim
    state = STATE_TENSORS * 4 * hidden * (first_of(config, "state_size", "mamba_d_state", "ssm_state_size") or 0)
    return itemsize * (WIDE_TENSORS * widest + HIDDEN_TENSORS * hidden) + HEAD_BYTES * hidden + state + INDEX_BYTES


def per_pair(model: "RewardModel") -> int:
    """Bytes per pair of tokens, for attention that is not packed."""
    config = model.net.config.get_text_config()
    heads = first_of(config, "num_attention_heads", "num_heads", "n_head") or 0
    holds_weights = model.own_attention == "eager" or first_of(config, "relative_attention_num_buckets")
    if holds_weights:
        return heads * EAGER_PAIR_BYTES
    return MASK_PAIR_BYTES + model.dtype.itemsize if heads else 0


def matrices_of(trunk: nn.Module) -> list[nn.Parameter]:
    """The weights of the matrix products: all parameters but embeddings and vectors."""
    tables = {id(module.weight) for module in trunk.modules() if isinstance(module, nn.Embedding)}
    return [each for each in trunk.parameters() if each.ndim > 1 and id(each) not in tables]


def first_of(config: Any, *names: str) -> int | None:
    """The config's first value among `names` that is an integer."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)
