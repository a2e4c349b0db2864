"""A last layer that compares prompt and response: its start values, and its forward for the last position alone.

Plain `LlamaForSequenceClassification` weights. Knows nothing of data or training.

Why it is built and not learned from a random start: an answer to another prompt is as fluent as the right one, so the two
differ only in an interaction of prompt and response, which 500 prompts did not teach to pretrained weights (accuracy .51).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from models.recipe.common import fast_products
from models.recipe.cut import PROMPT, RESPONSE
from models.recipe.trunk_states import rms_norm

WRITE_SCALE = 150.0  # what the heads write outweighs the last token's own residual (root mean square about 3)
FLOOR = 3e-4  # of the largest variance, added to each: what whitening enlarges, it enlarges float32's rounding with
CLOSED = -60.0  # attention logit, times a flag of about 0.2 to 4, of a token that a head must not see


@torch.no_grad()
def initialise(model: Any, quiet: list[int], samples: list[Tensor]) -> None:
    """Make the last layer score `p . r - d^2 / 2`: the mean states of prompt and response, centred and whitened, and the
    Mahalanobis distance d of the response's mean from a good answer's.

    Each group of heads shares 64 value dimensions, 192 principal directions in all. Its first head averages them over the
    prompt, its second over the response (the role flags close the other part), its third keeps the pretrained query.
    SwiGLU multiplies exactly: `silu(z) - silu(-z) = z`, so two hidden units with gates +p_i and -p_i and ups +r_i and -r_i
    add to p_i r_i; with gates and ups +r_i and -r_i they add to r_i^2. Both go to a quiet dimension, which the score reads.
    A loop's mean is far from any answer's, since fewer different tokens average less out; so is a refusal's.

    samples: states (tokens, hidden) of chosen answers at the layer's input, for the means, directions and distances.
    """
    layer, config = model.model.layers[-1], model.config
    attention, size = layer.self_attn, config.head_dim
    num_groups = config.num_key_value_heads
    per_group = config.num_attention_heads // num_groups
    normalised = [rms_norm(states) for states in samples]
    is_response = [states[:, quiet[RESPONSE]] > 0.2 for states in normalised]
    prompt = torch.stack([s[~flag].mean(0) for s, flag in zip(normalised, is_response, strict=True)])
    response = torch.stack([s[flag].mean(0) for s, flag in zip(normalised, is_response, strict=True)])
    centred = torch.cat([prompt - prompt.mean(0), response - response.mean(0)])
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    num_values = num_groups * size
    spread = (singular[:num_values].square() + FLOOR * singular[0].square()).sqrt() / len(centred) ** 0.5
    whiten = directions[:num_values] / spread[:, None]  # (192, hidden)

    pretrained_query = attention.q_proj.weight.clone()
    for parameter in (attention.q_proj.weight, *(p for name, p in attention.named_parameters() if "bias" in name)):
        parameter.zero_()
    attention.v_proj.weight.copy_(whiten)
    attention.o_proj.weight.copy_(WRITE_SCALE * torch.eye(config.hidden_size))
    flags = {0: (size // 2 - 1, quiet[RESPONSE]), 1: (size // 2 - 2, quiet[PROMPT])}  # slow rotary pairs: no position
    for group in range(num_groups):
        pairs = [slow + half for slow, _ in flags.values() for half in (0, size // 2)]
        attention.k_proj.weight[[group * size + i for i in pairs]] = 0
        own = whiten[group * size : (group + 1) * size]
        for place in range(per_group):
            head = group * per_group + place
            rows = slice(head * size, (head + 1) * size)
            centre = prompt.mean(0) if place == 0 else response.mean(0)
            attention.o_proj.bias[rows] = -WRITE_SCALE * (own @ centre)
            if place in flags:
                slow, closing = flags[place]
                attention.k_proj.weight[group * size + slow, closing] = -CLOSED
                attention.q_proj.bias[head * size + slow] = -(size**0.5)
            else:
                attention.q_proj.weight[rows] = pretrained_query[rows]
                attention.q_proj.weight[[head * size + i for i in pairs]] = 0

    for norm in (layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
        norm.weight.fill_(1.0)
    variance = ((response - response.mean(0)) @ whiten.T).pow(2).mean(0)  # (192,)
    write_products(layer.mlp, quiet[0], variance, (num_groups, per_group, size))
    model.score.weight.zero_()
    model.score.weight[0, quiet[0]] = 1.0


def write_products(mlp: Any, target: int, variance: Tensor, shape: tuple[int, int, int]) -> None:
    """Random hidden units, but four for each value dimension: p_i r_i and -r_i^2 / (2 variance_i), added to `target`.

    shape: key groups, heads in one, head size.
    """
    num_groups, per_group, size = shape
    mlp.gate_proj.weight.normal_(std=0.03)
    mlp.up_proj.weight.normal_(std=0.03)
    mlp.down_proj.weight.normal_(std=0.02 * WRITE_SCALE)
    mlp.down_proj.weight[target] = 0
    unit = 0
    for squared in (False, True):
        for index in range(num_groups * size):
            prompt = index // size * per_group * size + index % size  # of the group's first head, its second follows
            response = prompt + size
            weight = -0.5 / float(variance[index]) if squared else 1.0
            for sign in (1.0, -1.0):
                for projection in (mlp.gate_proj, mlp.up_proj):
                    projection.weight[unit] = 0
                mlp.gate_proj.weight[unit, response if squared else prompt] = sign
                mlp.up_proj.weight[unit, response] = sign
                mlp.down_proj.weight[:, unit] = 0
                mlp.down_proj.weight[target, unit] = weight * WRITE_SCALE / 8
                unit += 1


def score_last_position(model: Any, states: Tensor, lengths: Tensor) -> Tensor:
    """Scores (batch,) from the last layer's inputs (batch, tokens, hidden), right padded.

    Only the last position's query, output and MLP are computed; the score needs no other. Equals transformers' forward but
    for keys and values, which may be in bf16.
    """
    layer, config = model.model.layers[-1], model.config
    attention, size = layer.self_attn, config.head_dim
    batch, num_tokens, hidden = states.shape
    index = torch.arange(batch)
    last = lengths - 1
    normalised = layer.input_layernorm(states)
    shape = (batch, num_tokens, config.num_key_value_heads, size)
    query = attention.q_proj(normalised[index, last]).view(batch, config.num_attention_heads, 1, size)
    with fast_products():  # nearly all of the work, since only these are of every token
        key, value = attention.k_proj(normalised), attention.v_proj(normalised)
    key = key.float().view(shape).transpose(1, 2)  # (batch, groups, tokens, size)
    value = value.float().view(shape).transpose(1, 2)
    cosine, sine = model.model.rotary_emb(states, torch.arange(num_tokens)[None])  # (1, tokens, size)
    key = rotate(key, cosine[:, None], sine[:, None])
    query = rotate(query, cosine[0, last][:, None, None], sine[0, last][:, None, None])
    mask = (torch.arange(num_tokens)[None] < lengths[:, None])[:, None, None]  # (batch, 1, 1, tokens)
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    residual = states[index, last] + attention.o_proj(mixed.reshape(batch, hidden))
    residual = residual + layer.mlp(layer.post_attention_layernorm(residual))
    scores: Tensor = model.score(model.model.norm(residual))[:, 0]
    return scores


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding in transformers' half-split layout (Su et al. 2021, arXiv 2104.09864)."""
    left, right = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-right, left), dim=-1) * sine
