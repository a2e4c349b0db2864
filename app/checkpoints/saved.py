"""Opens a saved checkpoint: its config, its tokenizer, and its weights, which are read later."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.checkpoints.checks import check_depth, check_quantized, check_types
from app.checkpoints.files import find_file, find_gguf, read_json, weight_files
from app.checkpoints.gguf import gguf_weights
from app.checkpoints.native import NATIVE
from app.checkpoints.weights import FileSignature, signatures_of, weights_of
from app.settings import HUB_PREFIX


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint whose weights are read when they are accessed."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    weights: dict[str, Any]
    files: list[Path]
    signatures: list[FileSignature]  # of the files, taken before anything was read from them
    raw_config: Mapping[str, Any] = field(default_factory=dict)
    """The content of config.json."""


def load_arguments(source: str) -> dict[str, Any]:
    """`path` and `local_files_only` for `source`. A directory is never searched for on the network."""
    return {"path": source.removeprefix(HUB_PREFIX), "local_files_only": not source.startswith(HUB_PREFIX)}


def read_saved(source: str, trust_remote_code: bool) -> Saved:
    path, local = load_arguments(source).values()
    if local:
        read_json(Path(path, "config.json"))  # its errors name the file
    raw, _ = PreTrainedConfig.get_config_dict(path, local_files_only=local)
    native = NATIVE.get(raw.get("model_type", ""))
    if native is None:
        options = {"trust_remote_code": trust_remote_code, "local_files_only": local}
        config = AutoConfig.from_pretrained(path, **options)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **options)
    else:
        inherited = {key: value for key, value in raw.items() if key not in {"model_type", "auto_map"}}
        config = AutoConfig.for_model(native.model_type, **inherited)
        tokenizer = read_tokenizer(path, local)
    check_quantized(source, getattr(config, "quantization_config", None))
    gguf = find_gguf(path) if local else None
    files = [gguf] if gguf is not None else weight_files(path, local_files_only=local)
    signatures = signatures_of(files)
    weights = weights_of(files) if gguf is None else gguf_weights(gguf, config)
    check_types(source, weights)
    check_depth(source, raw, len(weights))
    if native is not None:
        weights = native.weights(raw, weights)
    return Saved(config, tokenizer, weights, files, signatures, raw)


def read_tokenizer(path: str, local_files_only: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a foreign model type, from tokenizer.json; its own class may be remote code, which is not run."""
    if find_file(path, "tokenizer.json", local_files_only=local_files_only) is None:
        raise FileNotFoundError("no file named tokenizer.json; save the tokenizer as a fast one")
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=local_files_only)
    return tokenizer  # type: ignore[no-any-return]
