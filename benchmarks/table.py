"""Plain text tables that are also Markdown."""

from collections.abc import Sequence

from tabulate import tabulate

NUM_LABEL_COLUMNS = 2


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with the first two columns aligned left and the others, which hold figures, aligned right.

    Raises ValueError for a row that does not have one cell per header.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells, the header has {len(headers)}: {row}")
    alignment = ["left" if index < NUM_LABEL_COLUMNS else "right" for index in range(len(headers))]
    table: str = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=alignment)
    return table
