"""Tiny language models whose weights are a GGUF file in 4 bits."""

from pathlib import Path
from typing import Any

import gguf
from gguf import quants
from transformers import AutoModelForCausalLM

from tests.models import make_language_model

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Of a Llama's layer, by transformers' names."""


def make_gguf_model(directory: Path, family: str = "llama", name: str = "tiny.Q4_1.gguf") -> Path:
    """Saves a Llama or Qwen2 as config.json, a tokenizer and a GGUF file in 4 bits; returns `directory`."""
    make_language_model(directory, family, tie_word_embeddings=True, intermediate_size=64)  # blocks of 32 weights
    net: Any = AutoModelForCausalLM.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    config = net.config
    writer = gguf.GGUFWriter(directory / name, family)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, weight in net.base_model.named_parameters():
        block = gguf.GGMLQuantizationType.Q4_1 if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name_in_file(key), quants.quantize(weight.detach().numpy(), block), raw_dtype=block)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return directory


def name_in_file(key: str) -> str:
    """Of a parameter of the trunk, such as `layers.0.mlp.up_proj.weight`."""
    if not key.startswith("layers."):
        return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[key]
    _, layer, rest = key.split(".", 2)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{NAMES[module]}.{kind}"
