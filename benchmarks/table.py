"""Plain text tables that are also Markdown."""

from collections.abc import Sequence


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align `rows` under `headers`: the first two columns to the left, figures to the right. Every row has a cell a header."""
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells, the header has {len(headers)}: {row}")
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    rule = ["-" * width if index < 2 else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    return "\n".join(_line(cells, widths) for cells in [headers, rule, *rows])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    pairs = zip(cells, widths, strict=True)
    aligned = [cell.ljust(width) if index < 2 else cell.rjust(width) for index, (cell, width) in enumerate(pairs)]
    return f"| {' | '.join(aligned)} |"
