"""Results as tables: those of docs/performance.md, ``python -m recserve.benchmarks.tables``.

The page keeps what stands between two marks as this program wrote it from ``benchmarks/results/*.json``.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from recserve import console
from recserve.benchmarks.compare import read_result
from recserve.benchmarks.kernels.report import limit_share, percent
from recserve.benchmarks.kernels.timing import OURS
from recserve.benchmarks.load.report import milliseconds
from recserve.benchmarks.peers.report import rows_of
from recserve.errors import CheckFailed, DataError

BEGIN = "<!-- Made by `make bench-tables` from benchmarks/results: change nothing by hand. -->"
END = "<!-- End of what is made. -->"
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = Path(__file__).resolve().parent / "results"
RECALL_COLUMNS = ("catalogue", "index", "setting", "recall@10", "ms, batch 1", "ms, batch 64", "built in s")
Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """``columns`` and ``rows`` of text; ``note``: a line below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """The table as a page has it."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{self.title}**\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")

    def show(self) -> None:
        """Prints the table for a person."""
        console.print_table(self.title, self.columns, self.rows)
        if self.note:
            console.stdout.print(self.note, markup=False, soft_wrap=True)


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


def _als_speed(result: Result) -> list[Table]:
    rows = [
        [
            case["data"],
            str(case["width"]),
            str(case["threads"]),
            f"{case['recserve_ms']:.1f}",
            f"{case['implicit_ms']:.1f}",
            f"{case['ratio']:.2f}",
        ]
        for case in result["cases"]
    ]
    columns = ["data", "width", "threads", "recserve ms", "implicit ms", "ratio"]
    return [Table("One epoch of ALS next to an iteration of implicit's", columns, rows)]


def _scale(result: Result) -> list[Table]:
    by_items = [row for row in result["rows"] if row["axis"] == "items"]
    curve = [
        [
            row["what"],
            f"{row['size']:,}",
            milliseconds(row["median_ms"]),
            " to ".join(map(milliseconds, row["intervals"]["median_ms"])),
            f"{row['us_per_request']:.0f}",
        ]
        for row in by_items
    ]
    base = result["options"]["base"]
    title = f"Cost by items in the catalogue, batch {base['batch']}, k {base['k']}"
    tables = [Table(title, ["what", "items", "ms per call", "95 % interval", "µs per request"], curve)]
    fits = [
        [
            fit["what"],
            fit["axis"],
            f"{fit['exponent']:.2f}",
            "–" if fit["low"] is None else f"{fit['low']:.2f} to {fit['high']:.2f}",
            f"{fit['last']:.2f}",
        ]
        for fit in result["fits"]
    ]
    note = ""
    if of_parts := result.get("bytes"):
        note = (
            f"Memory: {of_parts['item_bytes']:,.0f} bytes per item, {of_parts['user_bytes']:,.0f} per user, "
            f"{of_parts['process_bytes'] / 1e6:,.0f} MB whatever the size."
        )
    columns = ["what", "by", "b", "95 % interval", "b at the end"]
    return [*tables, Table("Growth: time of a call = a · size^b", columns, fits, note)]


def _kernels(result: Result) -> list[Table]:
    rows = [
        [
            f"{case['data']} {case['n_items']:,} × {case['dim']}",
            str(case["threads"]),
            str(case["batch"]),
            str(case["k"]),
            milliseconds(case["median_ms"][OURS]),
            milliseconds(case["hot_median_ms"][OURS]),
            f"{case['ratio']:.1f} × {case['best_peer']}" if case["ratio"] else "–",
            percent(limit_share(case)),
        ]
        for case in result["cases"]
    ]
    columns = ["catalogue", "threads", "batch", "k", "ms in turns", "ms alone", "best exact peer by ours"]
    columns.append("% of the limit")
    bars = [
        [
            bar["case"].strip(),
            f"{bar['measured']:.3g} {bar['unit']}",
            f"{'≥' if bar['at_least'] else '≤'} {bar['must']:g}",
            "reached" if bar["reached"] else "missed",
        ]
        for bar in result["bars"]
        if bar["measured"] is not None
    ]
    tables = [
        Table("Exact search in turns with its peers, the same answers", columns, rows),
        Table("Recall and latency, one thread", RECALL_COLUMNS, _recall_rows(result["approximate"])),
        Table("What was promised", ["case", "measured", "must", ""], bars),
    ]
    return [table for table in tables if table.rows]


def _recall_rows(rows: Sequence[Result]) -> list[list[str]]:
    return [
        [
            f"{row['data']} {row['n_items']:,} × {row['dim']}",
            row["method"],
            row["setting"],
            f"{row['recall']:.3f}",
            *(milliseconds(row["median_ms"][batch]) for batch in ("1", "64")),
            f"{row['build_s']:.1f}" if row["build_s"] else "–",
        ]
        for row in rows
    ]


def _peers(result: Result) -> list[Table]:
    columns = ["server", "in flight", "req/s", "p50 ms", "p99 ms", "CPU µs", "of recserve http"]
    left_out = "; ".join(f"{name}: {reason}" for name, reason in result["not_measured"].items())
    note = f"Not measured: {left_out}" if left_out else ""
    title = f"One encoder over {result['n_items']:,} items behind several servers, closed loop"
    return [Table(title, columns, rows_of(result), note)]


def _smoke(result: Result) -> list[Table]:
    rows = [
        [
            row["what"],
            f"{row['ratio']:.2f}",
            " to ".join(f"{end:.2f}" for end in row["intervals"]["ratio"]),
        ]
        for row in result["rows"]
    ]
    return [Table("Ratios of `make bench-smoke`, higher is better", ["what", "ratio", "interval"], rows)]


def _client(result: Result) -> list[Table]:
    alone, together = result["alone"], result["together"]
    rows = [
        [
            f"echo, {alone['in_flight']} in flight, req/s",
            f"{alone['recserve']:,.0f}",
            f"{alone['h2load']:,.0f}",
            f"{alone['recserve'] / alone['h2load']:.2f}",
        ],
        [
            f"highest rate with {together['slo']}",
            f"{together['recserve']:,.0f}",
            f"{together['h2load']:,.0f}",
            f"{together['ratio']:.2f}",
        ],
    ]
    note = f"Medians of {len(together['rounds']['recserve'])} rounds in turns."
    tables = [Table("The load generator and h2load", ["what", "recserve", "h2load", "ratio"], rows, note)]
    if third := result.get("loadgen"):
        rows = [
            [
                f"{name} at {third['rate']:,.0f} req/s, ms",
                milliseconds(third[name]["recserve"]),
                milliseconds(third[name]["loadgen"]),
                f"{third[name]['recserve'] / third[name]['loadgen']:.2f}",
            ]
            for name in ("p50", "p99")
        ]
        title = "The load generator and the server scenario of MLPerf's LoadGen"
        tables.append(Table(title, ["what", "recserve", "LoadGen", "ratio"], rows, note))
    return tables


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


# By the value of ``bench``, or by a key that only these have.
READERS: Mapping[str, Callable[[Result], list[Table]]] = {
    "scale": _scale,
    "peers": _peers,
    "quality": _bars,
    "smoke": _smoke,
    "alone": _client,
    "ndcg@10": _quality,
    "gain_ndcg": _cold_items,
    "auc_gain_over_lr": _rankers,
    "bars": _kernels,
    "cases": _als_speed,
    "online_models": _online,
}


def section(folder: Path) -> str:
    """Returns what the page has between its marks: the tables of all results in ``folder``, by file name."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        result = read_result(path)
        machine = result.get("environment") or next(iter(result["rows"].values()))["environment"]
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
