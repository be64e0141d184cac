"""What every ``bench`` verb does with its result: files, then JSON or tables on stdout."""

import csv as csv_module
import json as json_module
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recserve import console
from recserve.benchmarks.pages import check_paths, write


def write_rows(result: Mapping[str, Any], path: Path) -> None:
    """Writes one line per row of ``result``; columns are all names whose values are plain."""
    rows = result["rows"]
    plain = [{name: value for name, value in row.items() if not isinstance(value, dict)} for row in rows]
    columns = list(dict.fromkeys(name for row in plain for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv_module.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(plain)


@dataclass(frozen=True, slots=True)
class Output:
    """Where a result goes; None for nowhere. ``json``: to stdout instead of tables."""

    out: Path | None = None
    csv: Path | None = None
    html: Path | None = None
    png: Path | None = None
    json: bool = False

    def __post_init__(self) -> None:
        check_paths(self.html, self.png)

    def publish(
        self,
        name: str,
        result: Mapping[str, Any],
        show: Callable[[Any], None],
        write_csv: Callable[[Any, Path], None] = write_rows,
    ) -> None:
        """Writes what was asked for; ``name`` is that of the result on the page."""
        if self.out:
            text = json_module.dumps(result, indent=1, allow_nan=False)
            self.out.write_text(text + "\n", encoding="utf-8")
        if self.csv:
            write_csv(result, self.csv)
        if self.html or self.png:
            write({name: result}, self.html, self.png)
        if self.json:
            console.print_json(result)
        else:
            show(result)
