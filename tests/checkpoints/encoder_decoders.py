"""Tiny classifiers of encoder-decoders, made on the spot."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.models import GATED, VOCAB_SIZE, make_tokenizer

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
BART = {
    "d_model": 32,
    **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")},
    "max_position_embeddings": 256,
    "decoder_start_token_id": 2,
}
GEMMA = {**GATED, **IDS, "head_dim": 8, "sliding_window": 24}
SEQ2SEQ: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("t5", "mt5", "umt5"), T5),
    **dict.fromkeys(("bart", "mbart", "mvp", "plbart"), BART),
    "bigbird_pegasus": BART | {"attention_type": "original_full"},
    "t5gemma": {"encoder": GEMMA, "decoder": GEMMA},
}


def make_encoder_decoder(
    directory: Path, family: str, config: dict[str, Any] | None = None, *, add_eos: bool = True, **tokenizer: Any
) -> Path:
    """Saves a classifier with one label; its tokenizer ends every text in EOS, as T5's and BART's do, or not."""
    values = {
        "model_type": family,
        "vocab_size": VOCAB_SIZE,
        "num_labels": 1,
        **IDS,
        **SEQ2SEQ[family],
        **(config or {}),
    }
    torch.manual_seed(0)
    net = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**values))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for weight in net.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
    net.save_pretrained(directory)
    made = make_tokenizer(template=None, add_bos=False, **tokenizer)
    if add_eos:
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", IDS["eos_token_id"])]
        )
    made.save_pretrained(directory)
    return directory
