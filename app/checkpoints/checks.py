"""Checks of a checkpoint's names and shapes. Each raises ModelRefusedError with a one-line message: the finding and the remedy.

Imports neither torch nor transformers.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.checkpoints.architecture import is_classifier
from app.checkpoints.files import (
    BrokenFileError,
    broken_json,
    is_marked_untrained,
    lacks_tokenizer,
    lfs_pointers,
    shape_of,
)
from app.checkpoints.pickled import needs_conversion
from app.errors import ModelRefusedError, UndeclaredHeadError, one_line

OTHER_RULES = ("value_head_prefix", "mean", "std", "normalizer_type", "score_type")
"""Config fields of reward models whose score is not the plain output of a classifier's head."""
COMMON_LAYERS = 1000
"""Layers that are built quickly, though the files may have one set of tensors for all, as ALBERT's."""
SHORT_FLOATS = ("F4", "F6", "F8")
UNUSED = re.compile(r"(^|\.)(lm_head|embed_out)\.|\.rotary_emb\.inv_freq$|\.(masked_bias|attn\.bias)$")
"""Tensors that a classifier does not use: a language model's head, and computed buffers."""


def check_architecture(source: str, architecture: str) -> None:
    """Raises if this is no sequence classifier."""
    if not is_classifier(architecture):
        if pickled := needs_conversion(Path(source)):
            raise ModelRefusedError(
                f"{source} is {architecture}, and {pickled[0]} beside it is a pickle, which is not opened: run "
                f"`reward-service convert {source}`"
            )
        raise UndeclaredHeadError(
            f"{source} is {architecture}, not a sequence classifier; make a reward model of it with "
            f"`reward-service init --from-lm {source} --out DIR` and train it; if it is a guard or a judge, name the tokens of "
            'its verdict in reward.json, such as {"head": {"positive": "Yes", "negative": "No"}}'
        )


def check_class(source: str, architecture: str, native: str | None, model_type: str) -> None:
    """Raises if transformers has another classifier, `native`, for this model type."""
    if native is not None and architecture != native:
        raise ModelRefusedError(
            f"{source} is {architecture}, but transformers has {native} for its model_type {model_type}, so the scores may "
            f'differ; declare how it is read in reward.json, such as {{"head": "score", "position": "last"}}, or set architectures '
            f"in config.json to [{native}] if it is one"
        )


def check_not_encoder_decoder(source: str, is_encoder_decoder: bool) -> None:
    if is_encoder_decoder:
        raise ModelRefusedError(
            f"{source} is an encoder-decoder with a head of its own, which is not supported; use transformers' classifier"
        )


def check_other_rules(source: str, architecture: str, config: Mapping[str, Any]) -> None:
    """Raises if the config has a field of another kind of reward model."""
    for name in OTHER_RULES:
        value = config.get(name)
        if value is not None:
            raise ModelRefusedError(
                f"{source} has {name} {value!r} in its config: its score is not the plain output of {architecture}; serve "
                "the original checkpoint's family, or remove the field if the plain output is meant"
            )


def check_explained(source: str, unexpected: Iterable[str], weights: Mapping[str, Any]) -> None:
    """Raises if the files hold tensors that the model does not have: it would score without them."""
    unexplained = sorted(name for name in unexpected if not UNUSED.search(name))
    if unexplained:
        raise ModelRefusedError(
            f"{source} has tensors that its config does not explain ({named(unexplained, weights)}), so its scores would be "
            "wrong without them; use a config and weights that were saved together"
        )


def named(names: Sequence[str], weights: Mapping[str, Any]) -> str:
    """The first of the tensors with their shapes."""
    shown = [f"{name} {list(shape_of(weights[name]))}" if name in weights else name for name in names[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004 - enough to tell


def check_quantized(source: str, saved: Any) -> None:
    """Raises if the weights are quantized. `saved` is the config's `quantization_config`."""
    if saved is not None:
        method = saved.get("quant_method") if isinstance(saved, dict) else saved.quant_method
        raise ModelRefusedError(
            f"{source} was saved quantized ({method}), which is not supported; use the original, with dtype int8 if memory is short"
        )


def check_types(source: str, weights: Mapping[str, Any]) -> None:
    """Raises where safetensors files hold numbers of fewer than 16 bits, which mean nothing without their scales."""
    for name, stored in weights.items():
        dtype = stored.get_dtype() if hasattr(stored, "get_dtype") else ""
        if dtype.startswith(SHORT_FLOATS):
            raise ModelRefusedError(
                f"{source} has {name} in {dtype}, which is not supported; give the original, with dtype int8 if memory is short"
            )


def check_depth(source: str, config: Mapping[str, Any], num_tensors: int) -> None:
    """Raises where the config asks for so many layers that building them would never end, and the files have no tensors for them."""
    num_layers = config.get("num_hidden_layers") or config.get("n_layer")
    if isinstance(num_layers, int) and num_layers > max(num_tensors, COMMON_LAYERS):
        raise ModelRefusedError(
            f"{source} has num_hidden_layers {num_layers} in its config, and {num_tensors} tensors; use a config and weights that "
            "were saved together"
        )


def check_labels(source: str, num_labels: int) -> None:
    if num_labels != 1:
        raise UndeclaredHeadError(
            f"{source} has num_labels {num_labels}, and nothing says which output is the score; write it to reward.json: "
            '{"map": {"output": 0}}, {"map": {"log_odds": [1, 0]}} for output 1 against output 0, or {"map": {"softmax": 1}}'
        )


def check_missing(source: str, missing: set[str]) -> None:
    if missing:
        named = ", ".join(sorted(missing)[:3])
        is_head = all(
            name.startswith(("score.", "classifier.", "classification_head.", "pooler.", "head.")) for name in missing
        )
        remedy = "train the head and save it with the checkpoint" if is_head else "use an intact checkpoint"
        raise ModelRefusedError(f"{source} lacks weights ({named}), so they would be random; {remedy}")


def check_mismatched(source: str, mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    for name, saved, wanted in sorted(mismatched):
        raise ModelRefusedError(
            f"{source} has {name} of shape {list(saved)} where its config asks for {list(wanted)}; "
            "use a config and weights that were saved together"
        )


def check_untrained(source: str, files: list[Path]) -> None:
    if is_marked_untrained(files):
        raise ModelRefusedError(
            f"{source} has an untrained head, as `reward-service init` made it; train it and serve the result"
        )


def check_finite(source: str, non_finite: list[str]) -> None:
    if non_finite:
        raise ModelRefusedError(f"{source} has NaN or infinite weights in {min(non_finite)}; use an intact checkpoint")


@contextmanager
def refusing(source: str) -> Iterator[None]:
    """Turns whatever is raised about a checkpoint into a ModelRefusedError with a one-line message."""
    try:
        yield
    except ModelRefusedError:
        raise
    except Exception as error:
        hint = "check that it holds config.json, a tokenizer and model.safetensors as its authors have them"
        if pointers := lfs_pointers(Path(source)):
            hint = f"{pointers[0]} is a Git LFS pointer, not the file itself: run `git lfs pull` there"
        elif isinstance(error, BrokenFileError):
            hint = "copy the file again"
        elif broken := broken_json(Path(source)):
            hint = f"{broken[0]} is not valid JSON: copy it again"
        elif lacks_tokenizer(Path(source)):
            hint = "it has no tokenizer: save the one that it was trained with there"
        elif "trust_remote_code" in str(error):
            hint = "it contains code: review it, then set REWARD_TRUST_REMOTE_CODE=true"
        elif pickled := needs_conversion(Path(source)):
            hint = f"{pickled[0]} is a pickle, which is not opened: run `reward-service convert {source}`"
        elif any(Path(source).glob("consolidated*.pth")):
            hint = "only safetensors are supported: save it with save_pretrained, which writes them"
        raise ModelRefusedError(f"{source} cannot be loaded ({one_line(error)}); {hint}") from error
