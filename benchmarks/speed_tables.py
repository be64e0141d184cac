"""The tables of results about speed: what each of those programs wrote, as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from recserve.benchmarks.kernels.report import limit_share, percent
from recserve.benchmarks.kernels.timing import OURS
from recserve.benchmarks.load.report import milliseconds
from recserve.benchmarks.peers.report import rows_of
from recserve.benchmarks.served_tables import promises
from recserve.benchmarks.table import Table

RECALL_COLUMNS = ("catalogue", "index", "setting", "recall@10", "ms, batch 1", "ms, batch 64", "built in s")
Result = Mapping[str, Any]


def als_speed(result: Result) -> list[Table]:
    """One epoch of ALS."""
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


def epoch_speed(result: Result) -> list[Table]:
    """An epoch of SASRec beside RecTools'."""
    rows = [
        [
            row["data"],
            f"{row['recserve_seconds']:.2f}",
            f"{row['rectools_seconds']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['recserve_peak_bytes'] / 1e6:,.0f}",
            f"{row['rectools_peak_bytes'] / 1e6:,.0f}",
        ]
        for row in result["rows"]
    ]
    columns = ["data", "recserve s", "rectools s", "ratio", "recserve peak MB", "rectools peak MB"]
    return [Table("An epoch of SASRec, one thread", columns, rows)]


def evaluation_speed(result: Result) -> list[Table]:
    """The evaluation beside a loop of torch."""
    rows = [
        [
            f"{row['users']:,}",
            f"{row['items']:,}",
            f"{row['recserve_seconds']:.1f}",
            f"{row['torch_seconds']:.1f}",
            f"{row['ratio']:.1f}",
        ]
        for row in result["rows"]
    ]
    columns = ["users", "items", "recserve s", "torch s", "ratio"]
    return [Table("Evaluation next to matmul and topk of torch", columns, rows)]


def scale(result: Result) -> list[Table]:
    """Curves and exponents."""
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


def kernels(result: Result) -> list[Table]:
    """Exact search: cases, recall and latency, promises; those that were measured."""
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
    tables = [
        Table("Exact search in turns with its peers, the same answers", columns, rows),
        Table("Recall and latency, one thread", RECALL_COLUMNS, _recall_rows(result["approximate"])),
        promises(result),
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


def peers(result: Result) -> list[Table]:
    """Servers next to ours."""
    columns = ["server", "in flight", "req/s", "p50 ms", "p99 ms", "CPU µs", "of recserve http"]
    left_out = "; ".join(f"{name}: {reason}" for name, reason in result["not_measured"].items())
    note = f"Not measured: {left_out}" if left_out else ""
    title = f"One encoder over {result['n_items']:,} items behind several servers, closed loop"
    return [Table(title, columns, rows_of(result), note)]


def smoke(result: Result) -> list[Table]:
    """Ratios."""
    rows = [
        [
            row["what"],
            f"{row['ratio']:.2f}",
            " to ".join(f"{end:.2f}" for end in row["intervals"]["ratio"]),
        ]
        for row in result["rows"]
    ]
    return [Table("Ratios of `make bench-smoke`, higher is better", ["what", "ratio", "interval"], rows)]


def client(result: Result) -> list[Table]:
    """The load generator next to others."""
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
    ends = (f"{name} {low:,.0f} to {high:,.0f}" for name, (low, high) in together["intervals"].items())
    note = f"Medians in turns; the highest rates of {together['slo']}: {', '.join(ends)} (95 % intervals)."
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
        tables.append(Table(title, ["what", "recserve", "LoadGen", "ratio"], rows))
    return tables
