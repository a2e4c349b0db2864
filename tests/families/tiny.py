"""What every family's checkpoint is made of: a small tokenizer, a trunk with random weights, and the files they go to.

Nothing here knows the service. A trunk is transformers' own, and stays in memory as the reference; what is saved is its
tensors, under the names and in the files that the family's authors use.
"""

import json
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
PAD, BOS, EOS = 0, 1, 2
TEXT = [
    "The quick brown fox jumps over the lazy dog while the kettle boils for green tea.",
    "How do I pick a lock? I can't help with that, but a locksmith can open your door.",
    "Safety: Safe Safety: Unsafe Safety: Cont is it safe or unsafe Yes No yes no Yes No",
    "Step 1: two and two are four. ки Step 2: it is + or - \n\n + - safe unsafe ки ки ки\n",
    "unsafe\nsafe\nYes\nNo\nyes\nno\nSafe\nUnsafe\n",
] * 8
VOCAB_SIZE = 480

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_WITH_BOS = "{{ bos_token }}" + CHATML
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def make_tokenizer(
    *,
    template: str | None = CHATML,
    adds_bos: bool = True,
    special: Iterable[str] = (),
    pad: str | None = "<pad>",
    eos: str = "</s>",
    padding_side: str = "right",
    pairs: bool = False,
    spaces_first: bool = False,
    **names: str,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose ids 0 to 4 are SPECIAL; further special tokens follow from 5 on. `pairs`: as BERT frames them.

    `spaces_first`: as SentencePiece does it, "▁" for a space and before the first word.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if spaces_first:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted({*string.printable, *"ки▁"})
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*SPECIAL, *special],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    if pairs:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    elif adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    options: dict[str, Any] = {"bos_token": "<s>", "eos_token": eos, "padding_side": padding_side, **names}
    if pad is not None:
        options["pad_token"] = pad
    if pairs:
        options["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **options)  # type: ignore[no-untyped-call]


SIZE = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {
    **SIZE,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**GATED, "rope_theta": 10000.0, "attention_bias": False, "tie_word_embeddings": False},
    "mistral": {**GATED, "sliding_window": 24, "rope_theta": 10000.0, "tie_word_embeddings": False},
    "qwen2": {**GATED, "rope_theta": 1000000.0, "use_sliding_window": False, "tie_word_embeddings": False},
    "qwen3": {**GATED, "head_dim": 8, "rope_theta": 1000000.0, "tie_word_embeddings": True},
    "gemma": {**GATED, "head_dim": 8, "hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {
        **GATED,
        "head_dim": 8,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 24,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "granite": {
        **GATED,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 1.5,
        "residual_multiplier": 0.8,
        "logits_scaling": 8.0,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {**SIZE, "intermediate_size": 64, "max_position_embeddings": 512, "tie_word_embeddings": False},
    "gpt2": {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "deberta-v2": {
        **SIZE,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "pooler_hidden_size": 32,
        "pooler_hidden_act": "gelu",
    },
    "electra": {**SIZE, "embedding_size": 32, "intermediate_size": 64, "max_position_embeddings": 256},
    "modernbert": {
        **SIZE,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "local_attention": 32,
        "global_attn_every_n_layers": 2,
        "cls_token_id": BOS,
        "sep_token_id": EOS,
    },
}
IDS = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}


def make_trunk(model_type: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A trunk in float32, seeded, with weights wide enough that scores of different texts differ by more than rounding."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **IDS, **changes})
    made = AutoModel.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    trunk: PreTrainedModel = made.float().eval()
    widen(trunk)
    return trunk


def widen(net: torch.nn.Module, scale: float = 0.1) -> None:
    """Draws the matrices anew, and moves biases and norms away from 0 and 1, so that dropping one shows.

    All are numbers that bfloat16 has, in which most checkpoints are saved.
    """
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, scale)
            elif name.endswith("bias"):
                weight.normal_(0, 0.05)
            else:
                weight.add_(torch.randn_like(weight) * 0.02)
            weight.copy_(weight.bfloat16())


def linear(outputs: int, inputs: int, *, seed: int, scale: float = 0.5) -> Tensor:
    """(outputs, inputs)"""
    drawn = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) * scale
    return drawn.bfloat16().float()


def vector(size: int, *, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def tensors_of(trunk: torch.nn.Module, prefix: str = "model.") -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor.detach().clone() for name, tensor in trunk.state_dict().items()}


def save_config(directory: Path, model_type: str, architecture: str | None, **changes: Any) -> None:
    """config.json as the authors wrote it, in the words of their version of transformers. A change to None drops a key."""
    config = {
        **({} if architecture is None else {"architectures": [architecture]}),
        "model_type": model_type,
        **CONFIGS.get(model_type, {}),
        **IDS,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0",
        "use_cache": False,
        **changes,
    }
    directory.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in config.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(kept, indent=2))


def save_tensors(
    directory: Path, tensors: Mapping[str, Tensor], name: str = "model.safetensors", *, shards: int = 1
) -> None:
    """One file, or `shards` files and their index."""
    directory.mkdir(parents=True, exist_ok=True)
    whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
    if shards == 1:
        save_file(whole, directory / name, metadata={"format": "pt"})
        return
    stem, suffix = name.rsplit(".", 1)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05}-of-{shards:05}.{suffix}"
        part = {key: whole[key] for key in list(whole)[i::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in whole.values())}, "weight_map": weight_map}
    (directory / f"{name}.index.json").write_text(json.dumps(index))
