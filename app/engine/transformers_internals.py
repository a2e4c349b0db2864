"""Every use of transformers' private attributes and hooks, one function each; pyproject.toml caps transformers for them."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils.hub import cached_file


def attention_implementation(net: PreTrainedModel) -> str:
    """The name of the model's attention function, such as "sdpa". transformers has a public setter, but no getter."""
    name: str = net.config._attn_implementation  # noqa: SLF001 - see the module's docstring
    return name


def unsplittable_modules(net: PreTrainedModel) -> list[str]:
    """The class names of the modules that must stay whole on one device, for accelerate's device maps."""
    names: Any = net._no_split_modules  # noqa: SLF001 - see the module's docstring
    return list(names or [])


def find_in_hub(path: str, name: str, *, local_files_only: bool) -> Path | None:
    """The local path of a file of a hub id, without network access if `local_files_only`; None if there is no such file."""
    found = cached_file(path, name, local_files_only=local_files_only, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
