"""Goes through the rows, seed by seed and contender by contender, and writes the result after each."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recserve import console
from recserve.benchmarks.quality.bars import ROWS, Contender, Row
from recserve.benchmarks.quality.cells import Cell, Cells
from recserve.benchmarks.quality.clicks import Clicks
from recserve.benchmarks.quality.cold_items import of_online_retail
from recserve.benchmarks.quality.estimates import Seeds, estimates, judge
from recserve.benchmarks.quality.protocol import Protocol
from recserve.benchmarks.quality.ranking import of_leave_one_out, of_random_split
from recserve.benchmarks.quality.ratings import Ratings
from recserve.errors import CheckFailed, InvalidRequest, nearest
from recserve.files import write_whole
from recserve.training.data import Dataset, load_dataset

FILES = {
    "lastfm": "s3rec/LastFM.txt",
    "toys": "s3rec/Toys_and_Games.txt",
    "online-retail": "online-retail/online_retail_2010_2011.parquet",
}
PROTOCOLS: dict[str, Callable[[Dataset, int], Protocol]] = {
    "leave-one-out": of_leave_one_out,
    "random": of_random_split,
    "folds": Ratings,
    "temporal": lambda dataset, seed: Clicks(dataset),
}


@dataclass(frozen=True, slots=True)
class Options:
    """``folder``: of the data files, None where there are none; ``again``: measure what was measured, too."""

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    folder: Path | None
    cells: Cells
    result: Path
    again: bool = False


def chosen_rows(names: Sequence[str], *, quick: bool) -> tuple[Row, ...]:
    """Returns the rows called ``names``, all when there are none, or those of a quick run."""
    known = {row.name: row for row in ROWS}
    for name in names:
        if name not in known:
            raise InvalidRequest(
                "--rows", found=name, expected=f"some of {', '.join(known)}", cure=nearest(name, known)
            )
    return tuple(row for row in ROWS if (row.name in names if names else row.quick or not quick))


def run(options: Options) -> dict[str, Any]:
    """Measures the rows and returns all that the result file then has, other rows among it."""
    result = read(options.result)
    for row in options.rows:
        if (missing := _missing(row, options.folder)) is not None:
            result["not_measured"][row.name] = f"no file {missing} in the folder of --data"
            console.note(f"{row.name}: no file {missing}; name its folder with --data")
            continue
        result["not_measured"].pop(row.name, None)
        try:
            _measure_row(row, options, result)
        except CheckFailed as error:
            # A peer that cannot be installed, say: the other rows need not wait for that.
            result["not_measured"][row.name] = str(error)
            console.note(f"{row.name}: {error}")
        _write(options.result, result)
    return result


def _measure_row(row: Row, options: Options, result: dict[str, Any]) -> None:
    seeds = options.seeds if row.is_random else options.seeds[:1]
    protocols = _protocols(row, options.folder)
    measured: list[tuple[Protocol, dict[str, Cell]]] = []
    for seed in seeds:
        protocol = protocols(seed)
        measured.append((protocol, _measure_seed(row, seed, protocol, options)))
        result["rows"][row.name] = summary(row, seeds[: len(measured)], measured)
        _write(options.result, result)


def _write(path: Path, result: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(result, indent=1) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """Returns the result of earlier runs, or an empty one."""
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return {"bench": "quality", "rows": {}, "not_measured": {}}


def summary(
    row: Row, seeds: Sequence[int], measured: Sequence[tuple[Protocol, dict[str, Cell]]]
) -> dict[str, Any]:
    """Returns figures and verdicts of a row; ``measured``: of each seed the split and the cells by name."""
    over_seeds = Seeds([protocol for protocol, _ in measured])
    values = {
        contender.name: [cells[contender.name].values for _, cells in measured]
        for contender in row.contenders
    }
    samples = {name: over_seeds.samples(found) for name, found in values.items()}
    own, *others = samples
    gains = {name: estimates(samples[own], samples[name]) for name in others}
    of_own = estimates(samples[own])
    return {
        "environment": dict(measured[-1][1][own].told),
        "data": row.data,
        "protocol": row.protocol,
        "n_users": over_seeds.n_users,
        "seeds": list(seeds),
        "contenders": {
            name: {
                "metrics": estimates(samples[name]),
                "by_seed": over_seeds.by_seed(found),
                "seconds": [round(cells[name].seconds, 1) for _, cells in measured],
            }
            for name, found in values.items()
        },
        "gains": gains,
        "bars": [judge(bar, (gains[bar.over] if bar.over else of_own)[bar.metric]) for bar in row.bars],
    }


def _measure_seed(row: Row, seed: int, protocol: Protocol, options: Options) -> dict[str, Cell]:
    cells = {}
    for contender in row.contenders:
        found = None if options.again else options.cells.find(row, contender, seed)
        if found is None:
            found = options.cells.measure(row, contender, seed, protocol)
            console.note(f"{row.name}  seed {seed}  {_told(contender, protocol, found)}")
        cells[contender.name] = found
    return cells


def _told(contender: Contender, protocol: Protocol, cell: Cell) -> str:
    figures = Seeds([protocol]).by_seed([cell.values])[0]
    text = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
    return f"{contender.name}  {text}  {cell.seconds:.0f} s"


def _missing(row: Row, folder: Path | None) -> str | None:
    name = FILES.get(row.data)
    return None if name is None or (folder is not None and (folder / name).is_file()) else name


def _protocols(row: Row, folder: Path | None) -> Callable[[int], Protocol]:
    """Returns what makes the split of a seed."""
    path = None if folder is None or row.data not in FILES else folder / FILES[row.data]
    if row.protocol == "cold-items":
        if path is None:
            raise InvalidRequest(f"row {row.name}", found="without a data folder", expected="--data FOLDER")
        return lambda seed: of_online_retail(path, seed)
    dataset = load_dataset(row.data if path is None else f"sequences:{path}", on_note=console.note)
    return lambda seed: PROTOCOLS[row.protocol](dataset, seed)
