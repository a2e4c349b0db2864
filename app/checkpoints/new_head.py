"""Makes a reward model for training from a causal language model, by replacing its next-token head with a scalar one."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from app.checkpoints.architecture import architecture_of, is_language_model
from app.checkpoints.building import head_of
from app.checkpoints.checks import refusing
from app.checkpoints.files import UNTRAINED_MARK, find_gguf
from app.checkpoints.gguf import gguf_options
from app.checkpoints.transformers_checks import quiet_transformers
from app.errors import ModelRefusedError, StartError
from app.files.output import new_directory, require_new_directory


def init_reward_model(lm: Path, out: Path, seed: int = 0) -> str:
    """Saves the language model in `lm` with a random scalar head into the new directory `out`. Returns its class name.

    The file marks the head as untrained, and the service rejects it. Saving the model after training drops the mark.
    """
    require_new_directory(out)
    net, tokenizer = with_new_head(lm, seed)
    with new_directory(out) as directory:
        net.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        mark_untrained(directory, f"{head_of(net)[0]}.weight")
    return type(net).__name__


def with_new_head(lm: Path, seed: int, dtype: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model in `lm` with a random scalar head, and its tokenizer. `auto` is the checkpoint's own dtype.

    The head is N(0, 1 / (hidden size + 1)), as in Stiennon et al. 2020 (arXiv 2009.01325, appendix B.1).
    """
    if not lm.is_dir():
        raise StartError(f"{lm} is no directory; give one with a causal language model")
    source = str(lm)
    with refusing(source), quiet_transformers():
        config = AutoConfig.from_pretrained(source, num_labels=1, local_files_only=True)
        architecture = architecture_of(config.architectures)
        if not is_language_model(architecture):
            raise ModelRefusedError(f"{lm} is {architecture}, not a causal language model; give a directory with one")
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        gguf = find_gguf(source)
        net, loading = AutoModelForSequenceClassification.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            **({"use_safetensors": True} if gguf is None else gguf_options(gguf)),
        )
    name, head = head_of(net)
    random = {key for key in loading["missing_keys"] if not key.startswith(f"{name}.")}
    if random:
        raise ModelRefusedError(
            f"{lm} lacks weights of the trunk ({', '.join(sorted(random)[:3])}); use an intact checkpoint"
        )
    with torch.no_grad():
        head.weight.normal_(0, (head.in_features + 1) ** -0.5, generator=torch.Generator().manual_seed(seed))
        if head.bias is not None:
            head.bias.zero_()
    if config.pad_token_id is None:
        net.config.pad_token_id = tokenizer.pad_token_id
    return net, tokenizer


def mark_untrained(directory: Path, head: str) -> None:
    """Writes the mark into the metadata of the file that holds the head."""
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            if head not in opened.keys():  # noqa: SIM118 - safetensors' handle is no dict
                continue
            metadata = (opened.metadata() or {}) | UNTRAINED_MARK
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        save_file(tensors, file, metadata=metadata)
