"""What is refused before torch and transformers are imported, which takes seconds. `load_checkpoint` checks it again."""

from pathlib import Path

from app.checkpoints.declaration import DECLARATION_NAME, read_declarations
from app.settings import HUB_PREFIX


def check_declarations(source: str, declared: str | None, text: str | None) -> None:
    """Raises ModelRefusedError where `reward.json` in the directory, or a setting, cannot be read."""
    beside = Path(source) / DECLARATION_NAME
    is_there = not source.startswith(HUB_PREFIX) and beside.is_file()
    read_declarations(source, beside if is_there else None, declared, text)
