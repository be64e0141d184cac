"""Results as tables: those of docs/performance.md, ``python -m recserve.benchmarks.tables``.

The page keeps what stands between two marks as this program wrote it from ``benchmarks/results/*.json``.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from recserve.benchmarks.compare import read_result
from recserve.benchmarks.forms_table import forms_tables, ranker_tables
from recserve.benchmarks.served_tables import events, overload, serving
from recserve.benchmarks.slate_tables import slate_quality, slates
from recserve.benchmarks.speed_tables import (
    als_speed,
    client,
    epoch_speed,
    evaluation_speed,
    kernels,
    peers,
    scale,
    smoke,
)
from recserve.benchmarks.table import Table
from recserve.errors import CheckFailed, DataError

BEGIN = "<!-- Made by `make bench-tables` from benchmarks/results: change nothing by hand. -->"
END = "<!-- End of what is made. -->"
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = Path(__file__).resolve().parent / "results"
Result = Mapping[str, Any]


def tables_of(result: Result) -> list[Table]:
    """Returns the tables of a result that some benchmark here wrote; raises :class:`DataError` for others."""
    for name, read in READERS.items():
        if name in result or result.get("bench") == name:
            return read(result)
    raise DataError("result", found="of an unknown form", expected=f"one with {', '.join(READERS)}")


def show(result: Result) -> None:
    """Prints the tables of a result."""
    for table in tables_of(result):
        table.show()


def write_csv(result: Result, path: Path) -> None:
    """Writes the tables of a result below each other."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for table in tables_of(result):
            writer.writerows([table.columns, *table.rows])


def _quality(result: Result) -> list[Table]:
    rows = [
        [name, f"{row['mean']:.4f}", " ".join(f"{value:.4f}" for value in row["by_seed"])]
        for name, row in result["ndcg@10"].items()
    ]
    one = {f"over {result.get('gain_over')}": result.get("gain")}
    gains = result.get("gain_over_peer") or result.get("gain_over_implicit") or one
    note = "; ".join(f"{name}: {_interval(gain)}" for name, gain in gains.items() if gain and "mean" in gain)
    title = f"NDCG@10 on {result['dataset']}, {result['n_users']:,} users, {len(result['seeds'])} seeds"
    return [Table(title, ["model", "mean", "by seed"], rows, f"Gain, 95 % interval: {note}." if note else "")]


def _cold_items(result: Result) -> list[Table]:
    metrics = list(next(iter(result["metrics"].values())))
    rows = [
        [name, *(f"{row[metric]['mean']:.4f}" for metric in metrics)]
        for name, row in result["metrics"].items()
    ]
    note = "; ".join(f"{name}: {_interval(gain)}" for name, gain in result["gain_ndcg"].items())
    title = f"Online Retail: {result['n_cold_items']:,} items that nobody had, {result['n_users']:,} users"
    return [Table(title, ["model", *metrics], rows, f"Gain, 95 % interval: {note}." if note else "")]


def _bars(result: Result) -> list[Table]:
    """The bars of all rows, and who was measured beside whom."""
    bars = [
        [
            name,
            f"{bar['metric']} over {bar['over']}" if bar["over"] else bar["metric"],
            str(len(row["seeds"])),
            _interval(bar) if bar["over"] else _between(bar),
            f"{SIGNS[bar['kind']]} {bar['must']:g}",
            "reached" if bar["reached"] else "missed",
        ]
        for name, row in result["rows"].items()
        for bar in row["bars"]
    ]
    contenders = [
        [
            name,
            contender,
            *(f"{metric} {_between(estimate)}" for metric, estimate in list(one["metrics"].items())[:2]),
            f"{fmean(one['seconds']):.0f}",
        ]
        for name, row in result["rows"].items()
        for contender, one in row["contenders"].items()
    ]
    left_out = "; ".join(f"{name}: {reason}" for name, reason in result["not_measured"].items())
    return [
        Table(
            "Models and their bars: means over the seeds, 95 % intervals over users",
            ["row", "figure", "seeds", "measured", "must", ""],
            bars,
            f"Not measured: {left_out}." if left_out else "",
        ),
        Table("Who was measured", ["row", "contender", "", "", "seconds a seed"], contenders),
    ]


# How a bar reads; "not below" is judged by the upper end of the interval.
SIGNS = {"at least": "≥", "at most": "≤", "equal": "=", "not below": "not below"}


def _between(estimate: Result) -> str:
    return f"{estimate['mean']:.4f} ({estimate['low']:.4f} to {estimate['high']:.4f})"


def _interval(gain: Result) -> str:
    return f"{gain['mean']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"


def _rankers(result: Result) -> list[Table]:
    figures = ("AUC", "GAUC", "logloss", "ECE", "RMSE")
    rows = [
        [name, *(_mean(runs, figure) for figure in figures)] for name, runs in result["runs"].items() if runs
    ]
    return [Table(f"Rankers: {result['protocol']}, {len(result['seeds'])} seeds", ["model", *figures], rows)]


def _mean(runs: Sequence[Result], figure: str) -> str:
    values = [run[figure] for run in runs if run.get(figure) is not None]
    return f"{fmean(values):.4f}" if values else "–"


def _online(result: Result) -> list[Table]:
    return [table for one in result["online_models"].values() for table in _online_of(one)]


def _online_of(one: Result) -> list[Table]:
    def gain(arm: str, over: str) -> str:
        found = one["hr_gain"].get(f"{arm} over {over}")
        return _interval(found) if found else "–"

    rows = [
        [arm, f"{row['HR@10']:.4f}", f"{row['NDCG@10']:.4f}", gain(arm, "frozen"), gain(arm, "live history")]
        for arm, row in one["arms"].items()
    ]
    columns = ["", "HR@10", "NDCG@10", "HR@10 over frozen (95 %)", "over live history"]
    note = f"{one['n_events']:,} ratings of {one['n_users']} users, {one['n_new_users']} of them new."
    attacks = [
        [
            attack["learner"],
            f"{attack['target']} ({attack['interactions']} ratings)",
            f"{attack['target_hr']:.3%}",
            f"{attack['target_hr_attacked']:.3%}",
            f"{attack['genuine_ndcg_loss']:+.2%}",
        ]
        for attack in one["attacks"]
    ]
    about = ["", "target", "in slates", "when attacked", "NDCG@10 that genuine users lose"]
    title = f"The same with {one['attacks'][0]['n_attackers']} bandwagon accounts"
    return [Table(one["replayed"], columns, rows, note), Table(title, about, attacks)]


def _membership(result: Result) -> list[Table]:
    rows = [
        [name, *(_estimate(one[figure]) for figure in ("auc", "auc_by_slates", "ndcg"))]
        for name, one in result["membership"].items()
    ]
    title = f"Membership inference, sasrec on {result['n_members']} of the users of {result['dataset']}"
    note = f"DP-SGD with noise of {result['noise']:.2f} clipping lengths."
    return [
        Table(title, ["training", "AUC by every score", "AUC by slates", "NDCG@10 of members"], rows, note)
    ]


def _estimate(found: Result) -> str:
    return f"{found['mean']:.4f} ({found['low']:.4f} to {found['high']:.4f})"


# By the value of ``bench``, or by a key that only these have.
READERS: Mapping[str, Callable[[Result], list[Table]]] = {
    "serving": serving,
    "overload": overload,
    "scale": scale,
    "peers": peers,
    "quality": _bars,
    "smoke": smoke,
    "encoder_forms": forms_tables,
    "ranker_forms": ranker_tables,
    "slates": slates,
    "events": events,
    "slate_quality": slate_quality,
    "alone": client,
    "sequence_speed": epoch_speed,
    "evaluation_speed": evaluation_speed,
    "ndcg@10": _quality,
    "gain_ndcg": _cold_items,
    "auc_gain_over_lr": _rankers,
    "bars": kernels,
    "cases": als_speed,
    "online_models": _online,
    "membership": _membership,
}


def machine_of(result: Result) -> Mapping[str, Any]:
    """Returns what a result says of its machine; rows that were measured one by one have it each."""
    machine: Mapping[str, Any] = (
        result.get("environment") or next(iter(result["rows"].values()))["environment"]
    )
    return machine


def section(folder: Path) -> str:
    """Returns what the page has between its marks: the tables of all results in ``folder``, by file name."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        result = read_result(path)
        machine = machine_of(result)
        where = f"{machine.get('cpu')}, {machine.get('cores')} cores, {str(machine.get('date'))[:10]}"
        noise = f"; equal work took up to {machine['noise']} longer" if "noise" in machine else ""
        parts += [
            f"### {path.stem}",
            f"{where}{noise}.\n",
            *(table.markdown() for table in tables_of(result)),
        ]
    return "\n".join(parts)


def rewritten(page: str, folder: Path) -> str:
    """Returns ``page`` with the tables of ``folder`` between its marks; raises DataError without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError("page", found="without the marks of tables", expected=f"{BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{section(folder)}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Writes the page, or with --check fails where it is not what would be written."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.tables", description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page differs")
    options = parser.parse_args(arguments)
    page = options.page.read_text(encoding="utf-8")
    made = rewritten(page, options.results)
    if options.check and made != page:
        raise CheckFailed(
            f"tables of {options.page}",
            found="others",
            expected="those of the results",
            cure="make bench-tables",
        )
    options.page.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
