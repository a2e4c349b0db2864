"""What a checkpoint's model card says to the service: its tags."""

from pathlib import Path

from huggingface_hub import ModelCard

CARD_NAME = "README.md"


def tags_of(card: str | Path | None) -> tuple[str, ...]:
    """The tags in the front matter of the card; none where there is no card, or no valid front matter."""
    if card is None:
        return ()
    try:
        tags = ModelCard.load(card).data.get("tags")
    except Exception:  # noqa: BLE001 - a card is prose for people, and no reason to refuse a model
        return ()
    return tuple(map(str, tags)) if isinstance(tags, list) else ()
