"""What a server is measured for, as tables: its rates, its promises, what it does when too much is asked."""

from collections.abc import Mapping
from typing import Any

from recserve.benchmarks.load.report import milliseconds
from recserve.benchmarks.table import Table

Result = Mapping[str, Any]


def promises(result: Result) -> Table:
    """Returns the bars of a result: what was measured, what it must be, whether that is so."""
    rows = [
        [
            bar["case"].strip(),
            f"{bar['measured']:.3g} {bar['unit']}".strip(),
            f"{'≥' if bar['at_least'] else '≤'} {bar['must']:g}",
            "reached" if bar["reached"] else "missed",
        ]
        for bar in result["bars"]
        if bar["measured"] is not None
    ]
    return Table("What was promised", ["case", "measured", "must", ""], rows)


def serving(result: Result) -> list[Table]:
    """Returns the tables of benchmarks/serving."""
    rows = [
        [
            row["transport"],
            row["server"],
            row["in_flight"],
            f"{row['requests_per_second']:,.0f}",
            milliseconds(row["p50_us"] / 1e3),
            milliseconds(row["p99_us"] / 1e3),
            f"{row['of_echo']:.2f}",
        ]
        for row in result["rows"]
    ]
    columns = ["transport", "server", "in flight", "req/s", "p50 ms", "p99 ms", "of echo"]
    title = f"The table model next to echoes of its transports, 100,000 items, k {result['k']}, h2load"
    figures = [[case, *row] for case, found in result["cases"].items() for row in _figures(found)]
    return [
        Table(title, columns, rows),
        Table("SASRec and the rest", ["case", "figure", "value"], figures),
        promises(result),
    ]


def overload(result: Result) -> list[Table]:
    """Returns the tables of benchmarks/overload."""
    title = f"Ten times the peak, SASRec of width 256, deadline {result['deadline_ms']} ms"
    return [Table(title, ["figure", "value"], _figures(result)), promises(result)]


def events(result: Result) -> list[Table]:
    """Returns the tables of benchmarks/events."""
    title = (
        f"The event log over {result['transport']}, batches of {result['batch']} events, clients beside it"
    )
    return [Table(title, ["figure", "value"], _figures(result)), promises(result)]


def _figures(found: Result) -> list[list[str]]:
    return [
        [name.replace("_", " "), f"{value:,.4g}"]
        for name, value in found.items()
        if isinstance(value, int | float) and name != "schema"
    ]
