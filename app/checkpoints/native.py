"""Model types unknown to transformers whose trunk equals one that it has under another name. No remote code runs.

Each is read with a config of the other model type, and with renamed weights.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.checkpoints.files import shape_of

if TYPE_CHECKING:
    from torch import Tensor

RawConfig = Mapping[str, Any]
Weights = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Native:
    """How a foreign model type is read: as `model_type`, with its weights converted by `weights`."""

    model_type: str
    weights: Callable[[RawConfig, Weights], Weights] = lambda _, weights: weights


@dataclass(frozen=True, slots=True)
class Rows:
    """Some of the rows of a stored matrix, read lazily: `per_group` heads, from index `first`, of every group of `of` heads.

    Its shape is (groups * per_group * head_dim, in).
    """

    stored: Any
    head_dim: int
    of: int
    first: int
    per_group: int

    def get_shape(self) -> list[int]:
        num_rows, width = shape_of(self.stored)
        return [num_rows // self.of * self.per_group, width]

    def get_dtype(self) -> Any:
        return self.stored.get_dtype()

    def __getitem__(self, index: Any) -> "Tensor":
        whole: Tensor = self.stored[...]
        groups = whole.view(-1, self.of, self.head_dim, whole.shape[1])
        part = groups[:, self.first : self.first + self.per_group]
        return part.reshape(-1, whole.shape[1])[index]


INTERNLM2_NAMES = (
    (r"^model\.tok_embeddings\.", "model.embed_tokens."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
)


def internlm2_weights(config: RawConfig, weights: Weights) -> Weights:
    """The weights under Llama's names. `wqkv` contains, per key-value head, the rows of its queries, of its key, of its value."""
    num_heads = config["num_attention_heads"]
    num_queries = num_heads // (config.get("num_key_value_heads") or num_heads)  # per key-value head
    head_dim = config["hidden_size"] // num_heads
    renamed: Weights = {}
    for stored_name, stored in weights.items():
        name = stored_name
        for pattern, replacement in INTERNLM2_NAMES:
            name = re.sub(pattern, replacement, name)
        if not name.endswith(".attention.wqkv.weight"):
            renamed[name] = stored
            continue
        layer = name.removesuffix(".attention.wqkv.weight")
        for part, first, per_group in (("q", 0, num_queries), ("k", num_queries, 1), ("v", num_queries + 1, 1)):
            rows = Rows(stored, head_dim, num_queries + 2, first, per_group)
            renamed[f"{layer}.self_attn.{part}_proj.weight"] = rows
    return renamed


NATIVE = {
    "internlm2": Native("llama", internlm2_weights),
    "gpt_neox_reward_model": Native("gpt_neox"),
}
