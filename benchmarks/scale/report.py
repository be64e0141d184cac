"""The curves as tables for a person, and as plots."""

from collections.abc import Mapping, Sequence
from typing import Any

from recserve import console
from recserve.benchmarks.environment import machine_line
from recserve.benchmarks.load.report import milliseconds

Rows = Sequence[Mapping[str, Any]]
WORDS = {
    "items": "items in the catalogue",
    "history": "length of the history",
    "batch": "requests in a batch",
    "callers": "callers at once, each with a batch",
    "dim": "embedding size",
    "k": "length of the slate",
}


def show(result: Mapping[str, Any]) -> None:
    """Prints everything to stdout."""
    console.stdout.print(machine_line(result["environment"]), markup=False, soft_wrap=True)
    base = result["options"]["base"]
    console.stdout.print(
        f"sizes that do not vary: {base['items']:,} items × {base['dim']} of the search "
        f"({result['options']['data']}), batch {base['batch']}, k {base['k']}, {base['callers']} caller(s)"
    )
    for axis in dict.fromkeys(row["axis"] for row in result["rows"]):
        _show_axis(axis, [row for row in result["rows"] if row["axis"] == axis])
    console.print_table(
        "growth: time of a call = a · size^b",
        ["what", "by", "points", "b", "95 % interval", "R²", "b at the end"],
        [
            [
                fit["what"],
                fit["axis"],
                fit["points"],
                f"{fit['exponent']:.2f}",
                "–" if fit["low"] is None else f"{fit['low']:.2f} to {fit['high']:.2f}",
                f"{fit['r_squared']:.3f}",
                f"{fit['last']:.2f}",
            ]
            for fit in result["fits"]
        ],
    )
    if "memory" in result:
        _show_memory(result["memory"], result.get("bytes"))
    if "fleet" in result:
        show_fleet(result["fleet"])


def _show_axis(axis: str, rows: Rows) -> None:
    console.print_table(
        f"by {WORDS[axis]}",
        ["what", "size", "ms per call", "95 % interval", "µs per request", "of CPU"],
        [
            [
                row["what"],
                f"{row['size']:,}",
                milliseconds(row["median_ms"]),
                " to ".join(map(milliseconds, row["intervals"]["median_ms"])),
                f"{row['us_per_request']:.1f}",
                f"{row['cpu_us_per_request']:.1f}",
            ]
            for row in rows
        ],
    )


def _show_memory(measured: Rows, of_parts: Mapping[str, float] | None) -> None:
    console.print_table(
        "a process that serves the bundle",
        ["items", "resident MB", "at most while loading", "loaded in s"],
        [
            [
                f"{one['n_items']:,}",
                f"{one['resident_bytes'] / 1e6:,.0f}",
                f"{one['peak_bytes'] / 1e6:,.0f}",
                f"{one['load_s']:.2f}",
            ]
            for one in measured
        ],
    )
    if of_parts is not None:
        console.stdout.print(
            f"{of_parts['item_bytes']:,.0f} bytes per item, {of_parts['user_bytes']:,.0f} per user, "
            f"{of_parts['process_bytes'] / 1e6:,.0f} MB whatever the size"
        )


def show_fleet(fleet: Mapping[str, Any]) -> None:
    """Prints the plan and what it rests on."""
    console.print_table(
        "a fleet, on paper",
        ["what", "value"],
        [
            ["requests per second", f"{fleet['rate']:,.0f}"],
            ["items", f"{fleet['items']:,}"],
            ["users", f"{fleet['users']:,}"],
            ["cores", f"{fleet['cores']:,.1f}"],
            ["machines", f"{fleet['nodes']:,}"],
            ["memory of each, GB", f"{fleet['node_gb']:.1f}"],
            ["€ per month", f"{fleet['euros_per_month']:,.0f}"],
            ["€ per million requests", f"{fleet['euros_per_million']:.4f}"],
        ],
    )
    for assumption in fleet["assumptions"]:
        console.stdout.print(f"  assumed: {assumption}", markup=False, soft_wrap=True)


def draw_axis(axes: Any, axis: str, rows: Rows, fits: Rows) -> None:
    """Draws time against one size on matplotlib's ``axes``, both logarithmic, with the fitted lines."""
    for what in dict.fromkeys(row["what"] for row in rows):
        own = [row for row in rows if row["what"] == what]
        [line] = axes.plot(
            [row["size"] for row in own], [row["median_ms"] for row in own], marker="o", linestyle="none"
        )
        for fit in fits:
            if (fit["what"], fit["axis"]) == (what, axis):
                sizes = [own[0]["size"], own[-1]["size"]]
                axes.plot(
                    sizes,
                    [fit["factor"] * size ** fit["exponent"] for size in sizes],
                    color=line.get_color(),
                    linewidth=1,
                    label=f"{what}: {axis}^{fit['exponent']:.2f}",
                )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(WORDS[axis])
    axes.set_ylabel("ms per call")
