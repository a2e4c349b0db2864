"""The class that a config.json names, and the kind of model that this name implies."""

from collections.abc import Sequence


def architecture_of(architectures: Sequence[str] | None) -> str:
    """The first of a config's `architectures`, which may be a single name, or a phrase for messages if there is none."""
    if isinstance(architectures, str):
        return architectures
    return str((architectures or ["of no named architecture"])[0])


def is_classifier(architecture: str) -> bool:
    return "SequenceClassification" in architecture


def is_language_model(architecture: str) -> bool:
    return "CausalLM" in architecture or "LMHead" in architecture
