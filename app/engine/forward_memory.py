"""About how much memory a long text's forward takes on the CPU, so that one that does not fit is refused and not begun.

On a GPU an allocation that fails is an exception, and the batch is split. On the CPU the kernel hands out memory that it does
not have and then kills the process, with every request in it.
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
"""As wide as the widest matrix, that exist at one time."""
HIDDEN_TENSORS = 8
HEAD_BYTES = 16
"""Per token and hidden number: the states in float64 and their products, where every token's score is wanted."""
INDEX_BYTES = 2_000
"""Per token: indices, and the mask of a block of queries."""
STATE_TENSORS = 6
"""Of a state-space layer: as wide as the hidden state times the state, in float32."""
EAGER_PAIR_BYTES = 32
"""Per head and pair of tokens, where attention holds its weights."""
MASK_PAIR_BYTES = 5
"""Per pair of tokens, where it holds a mask alone; and a number of the model's type."""
SHARE = 0.9
"""Of the memory that is free, what one forward may take."""


@dataclass(frozen=True, slots=True)
class ForwardMemory:
    """A forward of n tokens takes about `per_token` n + `per_pair` n^2 bytes. Texts up to `free_tokens` are not looked at."""

    per_token: int
    per_pair: int
    free_tokens: int
    longest: int
    free_bytes: Callable[[], int | None]
    """What is free now; None where nothing says."""

    @classmethod
    def of(cls, model: "RewardModel", free_bytes: Callable[[], int | None]) -> "ForwardMemory":
        """The estimate for a model whose path is chosen; its usual batches, which are computed all the time, are free."""
        return cls(
            per_token(model),
            per_pair(model) if model.plan.path != "packed" else 0,
            model.max_batch_tokens,
            model.tokenization.max_length,
            free_bytes,
        )

    def find_fault(self, num_tokens: int) -> str | None:
        """Why a text of so many tokens is not computed; None where it is."""
        if num_tokens <= self.free_tokens:
            return None
        wanted, free = self.bytes_for(num_tokens), self.free_bytes()
        if free is None or wanted <= free * SHARE:
            return None
        return (
            f"has {num_tokens} tokens, within the limit of {self.longest}, but a forward pass of so many takes about "
            f"{byte_size(wanted)} and {byte_size(free)} of memory is free; shorten it, or set REWARD_MAX_LENGTH to "
            f"{self.tokens_in(int(free * SHARE))} or less to have longer texts refused or truncated"
        )

    def bytes_for(self, num_tokens: int) -> int:
        return self.per_token * num_tokens + self.per_pair * num_tokens**2

    def tokens_in(self, num_bytes: int) -> int:
        """The most tokens that fit, rounded down to two digits; the usual batch at least."""
        most = num_bytes // self.per_token
        if self.per_pair:
            root = math.isqrt(self.per_token**2 + 4 * self.per_pair * num_bytes)
            most = (root - self.per_token) // (2 * self.per_pair)
        unit: int = 10 ** max(len(str(most)) - 2, 0)
        return max(most // unit * unit, self.free_tokens)


def per_token(model: "RewardModel") -> int:
    config: Any = model.net.config.get_text_config()
    itemsize: int = model.dtype.itemsize
    widest = max((int(max(matrix.shape[-2:])) for matrix in matrices_of(model.trunk)), default=0)
    widest *= first_of(config, "num_experts_per_tok") or 1
    hidden: int = model.net.get_input_embeddings().embedding_dim
    state = STATE_TENSORS * 4 * hidden * (first_of(config, "state_size", "mamba_d_state", "ssm_state_size") or 0)
    return itemsize * (WIDE_TENSORS * widest + HIDDEN_TENSORS * hidden) + HEAD_BYTES * hidden + state + INDEX_BYTES


def per_pair(model: "RewardModel") -> int:
    config = model.net.config.get_text_config()
    heads = first_of(config, "num_attention_heads", "num_heads", "n_head") or 0
    holds_weights = model.own_attention == "eager" or first_of(config, "relative_attention_num_buckets")
    if holds_weights:
        return heads * EAGER_PAIR_BYTES
    return MASK_PAIR_BYTES + model.dtype.itemsize if heads else 0


def matrices_of(trunk: nn.Module) -> list[nn.Parameter]:
    """The weights that states are multiplied with: all but embeddings and vectors."""
    tables = {id(module.weight) for module in trunk.modules() if isinstance(module, nn.Embedding)}
    return [each for each in trunk.parameters() if each.ndim > 1 and id(each) not in tables]


def first_of(config: Any, *names: str) -> int | None:
    """The first of the config's values that is a number."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)
