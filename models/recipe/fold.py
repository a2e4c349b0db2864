"""Write a linear probe on the mean of a trunk's states into the last layer and the head of a plain Llama.

Knows the shapes of `LlamaForSequenceClassification` and nothing of data or training.
"""

from typing import Any

import torch
from torch import Tensor

from models.recipe.common import load_trunk

CONSTANT = 8192.0  # far above any other residual value, so that the final norm's divisor is CONSTANT / sqrt(hidden)


@torch.no_grad()
def fold_mean_probe(weight: Tensor, bias: float) -> Any:
    """A model whose score is `bias + mean_t(weight . rmsnorm(h_t))`, h the input of the last layer, t over all tokens.

    - A last-token head sees the mean of all tokens when the attention is uniform: q = 0 makes every causal softmax
      flat, and at the last position "causal" is "all".
    - The value projection carries `weight`'s direction into one quiet residual dimension; the MLP adds nothing.
    - RMSNorm divides by the whole residual. A large constant in a second quiet dimension (o_proj's bias) fixes that
      divisor to CONSTANT / sqrt(hidden) and gives the head a bias, which a Llama's score layer does not have.
    """
    model, quiet = load_trunk("trunk")
    value, constant = quiet[:2]
    hidden = model.config.hidden_size
    last = model.model.layers[-1]
    attention = last.self_attn
    for parameter in (*attention.parameters(), last.mlp.down_proj.weight, model.score.weight, model.model.norm.weight):
        parameter.zero_()
    last.input_layernorm.weight.fill_(1.0)
    attention.v_proj.weight[0] = weight
    attention.o_proj.weight[value, 0] = 1.0
    attention.o_proj.bias[constant] = CONSTANT
    model.model.norm.weight[[value, constant]] = 1.0
    model.score.weight[0, value] = CONSTANT / hidden**0.5
    model.score.weight[0, constant] = bias / hidden**0.5
    return model
