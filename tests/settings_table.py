"""The table in docs/settings.md, from the settings themselves. `make readme` writes it; a test compares the two."""

import re
from pathlib import Path

from app.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
TABLE = re.compile(r"(<!-- settings.*?-->\n).*?(<!-- /settings -->)", re.DOTALL)


def settings_table() -> str:
    rows = ["| REWARD_ | default | |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "unset" if default is None or default == () else str(default).lower() if default is False else default
        rows.append(f"| {name.upper()} | {shown} | {' '.join((field.description or '').split())} |")
    return "\n".join(rows) + "\n"


def with_table(page: str) -> str:
    return TABLE.sub(lambda match: match[1] + settings_table() + match[2], page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
