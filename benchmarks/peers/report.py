"""Servers next to each other, as a table and as a plot."""

from collections.abc import Mapping
from typing import Any

from recserve import console
from recserve.benchmarks.environment import machine_line
from recserve.benchmarks.load.report import milliseconds


def show(result: Mapping[str, Any]) -> None:
    """Prints the table, and who is not in it."""
    console.stdout.print(machine_line(result["environment"]), markup=False, soft_wrap=True)
    console.print_table(
        f"{result['n_items']:,} items, k {result['k']}: closed loop over loopback, medians of rounds",
        ["server", "in flight", "req/s", "p50 ms", "p99 ms", "CPU µs per request", "of recserve http"],
        rows_of(result),
    )
    for name, reason in result["not_measured"].items():
        console.stdout.print(f"not measured: {name}: {reason}", markup=False, soft_wrap=True)


def rows_of(result: Mapping[str, Any]) -> list[list[str]]:
    """Returns a row per server and load: who, in flight, requests/s, p50, p99, CPU time, by our own HTTP."""
    return [
        [
            row["server"],
            str(row["in_flight"]),
            f"{row['requests_per_second']:,.0f}",
            milliseconds(row["p50_ms"]),
            milliseconds(row["p99_ms"]),
            f"{row['cpu_us_per_request']:,.0f}",
            f"{row['of_recserve_http']:.2f}",
        ]
        for row in result["rows"]
    ]


def draw(axes: Any, result: Mapping[str, Any]) -> None:
    """Draws requests per second by server on matplotlib's ``axes``, a group of bars by load."""
    rows = result["rows"]
    servers = list(dict.fromkeys(row["server"] for row in rows))
    loads = list(dict.fromkeys(row["in_flight"] for row in rows))
    height = 0.8 / len(loads)
    for i, load in enumerate(loads):
        rates = {row["server"]: row["requests_per_second"] for row in rows if row["in_flight"] == load}
        places = [place + (i - (len(loads) - 1) / 2) * height for place in range(len(servers))]
        axes.barh(places, [rates[name] for name in servers], height, label=f"{load} in flight")
    axes.set_yticks(range(len(servers)), servers)
    axes.invert_yaxis()
    axes.set_xlabel("answers per second")
