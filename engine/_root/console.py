"""How every verb of the command line talks: data on stdout, everything else on stderr."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


def print_json(value: Any) -> None:
    """Writes one JSON document to stdout, as it is: no colour, no wrapping."""
    stdout.file.write(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    stdout.file.flush()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Writes a table to stdout, the cells as they are (no markup); numbers stand on the right."""
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[i]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    stdout.print(table)


def note(message: str) -> None:
    """Writes one line to stderr, as it is."""
    stderr.print(message, markup=False, soft_wrap=True)


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Any]:
    """Shows a bar on stderr; yields ``update(advance, description=None)``."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr) as bar:
        task = bar.add_task(description, total=total)

        def update(advance: int = 1, description: str | None = None) -> None:
            bar.update(task, advance=advance, description=description)

        yield update


def _is_number(cell: object) -> bool:
    return bool(str(cell)) and str(cell)[-1:].isdigit() and str(cell)[0] in "+-−0123456789.±"
