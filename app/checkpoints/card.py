"""Reads the tags of a checkpoint's model card."""

from pathlib import Path

from huggingface_hub import ModelCard

CARD_NAME = "README.md"


def tags_of(card: str | Path | None) -> tuple[str, ...]:
    """The tags in the card's front matter; empty if there is no card, or no valid front matter."""
    if card is None:
        return ()
    try:
        tags = ModelCard.load(card).data.get("tags")
    except Exception:  # noqa: BLE001 - a card is written for people; an invalid one is no reason to reject a model
        return ()
    return tuple(map(str, tags)) if isinstance(tags, list) else ()
