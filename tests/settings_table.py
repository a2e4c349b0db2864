"""The README's table of settings, from the settings themselves. `make readme` writes it; a test holds it against them."""

import re
from pathlib import Path

from app.settings import Settings

README = Path(__file__).resolve().parent.parent / "README.md"
PLACE = re.compile(r"(<!-- settings.*?-->\n).*?(<!-- /settings -->)", re.DOTALL)


def settings_table() -> str:
    rows = ["| REWARD_ | default | |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "unset" if default is None or default == () else str(default).lower() if default is False else default
        rows.append(f"| {name.upper()} | {shown} | {' '.join((field.description or '').split())} |")
    return "\n".join(rows) + "\n"


def with_table(readme: str) -> str:
    return PLACE.sub(lambda match: match[1] + settings_table() + match[2], readme)


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
