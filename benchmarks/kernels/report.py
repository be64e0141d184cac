"""The result as tables for a person."""

from collections.abc import Sequence
from typing import Any

from recserve import console
from recserve.benchmarks.environment import machine_line
from recserve.benchmarks.kernels.timing import OURS

Result = dict[str, Any]
QUIET_SHARE = 0.97
LEGEND = (
    "ms / hot: median in turns with the peers / alone, call after call; limit %: least possible time of the "
    "int8 pass by the hot median; scan %: of the tiles; rows: scored in float32, per query; below: median/min"
)


def show(result: Result) -> None:
    """Prints everything to stdout."""
    console.stdout.print(machine_line(result["environment"]), markup=False, soft_wrap=True)
    _show_limits(result["limits"])
    console.stdout.print(LEGEND, markup=False, soft_wrap=True)
    for catalogue in result["catalogues"]:
        show_catalogue(catalogue, result["cases"])
    if result["approximate"]:
        _show_approximate(result["approximate"])
    if result["exclusions"]:
        _show_exclusions(result["exclusions"])
    if result["speed_ups"]:
        _show_speed_ups(result["speed_ups"])
    if result["start"]:
        show_start(result["start"])
    show_bars(result["bars"])
    if disturbed := n_disturbed(result["cases"]):
        console.note(
            f"note: {disturbed} of {len(result['cases'])} cases had less than {QUIET_SHARE:.0%} of a core: "
            "other programs ran beside them. Run it again on a quiet machine."
        )


def n_disturbed(cases: Sequence[dict[str, Any]]) -> int:
    """The number of cases of one thread that had to share the core."""
    return sum(case["threads"] == 1 and case["cpu_share"] < QUIET_SHARE for case in cases)


def show_catalogue(catalogue: dict[str, Any], cases: Sequence[dict[str, Any]]) -> None:
    """One table: the cases on one catalogue."""
    key = {name: catalogue[name] for name in ("data", "n_items", "dim", "threads")}
    own = [case for case in cases if all(case[name] == value for name, value in key.items())]
    threads = "1 thread" if key["threads"] == 1 else f"{key['threads']} threads"
    console.print_table(
        f"{key['data']} {key['n_items']:,} × {key['dim']}, {threads}, {catalogue['isa']}: built in "
        f"{catalogue['build_s']:.2f} s, {catalogue['bytes_per_item']:.0f} bytes per item",
        ["B", "K", "ms / hot", "best exact peer", "limit %", "scan %", "rows"],
        [
            [
                case["batch"],
                case["k"],
                f"{_ms(case['median_ms'][OURS])} / {_ms(case['hot_median_ms'][OURS])}",
                f"{case['ratio']:.1f}× {case['best_peer']}" if case["ratio"] else "–",
                percent(limit_share(case)),
                percent(case["scanned"]),
                f"{case['rows_scored']:.0f}",
            ]
            for case in own
        ],
    )
    for case in own:
        others = sorted(case["median_ms"].items(), key=lambda item: item[1])
        line = "  ".join(f"{name} {_ms(value)}/{_ms(case['min_ms'][name])}" for name, value in others)
        console.stdout.print(f"  B{case['batch']} K{case['k']}: {line}", markup=False, soft_wrap=True)


def limit_share(case: dict[str, Any]) -> float | None:
    """The physical limit of what was scanned by the hot median; None where no limit was measured."""
    return case["limit_ms"] / case["hot_median_ms"][OURS] if case["limit_ms"] else None


def percent(share: float | None) -> str:
    """A fraction in percent, without the sign; "–" for None."""
    return "–" if share is None else f"{100 * share:.3g}"


def show_bars(bars: Sequence[dict[str, Any]]) -> None:
    """The table of what was promised."""
    console.print_table(
        "the speed to reach",
        ["case", "measured", "must", "stretch", ""],
        [
            [
                bar["case"],
                "–" if bar["measured"] is None else _figure(bar["measured"], bar["unit"]),
                f"{'≥' if bar['at_least'] else '≤'} {_figure(bar['must'], bar['unit'])}",
                "" if bar["stretch"] is None else _figure(bar["stretch"], bar["unit"]),
                {True: "reached", False: "MISSED", None: ""}[bar["reached"]],
            ]
            for bar in bars
        ],
    )


def show_start(start: dict[str, Any]) -> None:
    """The table of the cold start."""
    rows = [
        ["from its start to ready", f"{start['ready_s']:.2f} s"],
        ["  of that: importing the kernels", f"{start['import_s']:.2f} s"],
        ["  of that: warm-up", f"{start['warmup_s']:.2f} s"],
        [
            f"  of that: index of {start['n_items']:,} × {start['dim']}, first batch",
            f"{start['index_s']:.2f} s",
        ],
        ["kernels compiled by it", start["compiled"]],
        ["first search after it", f"{start['first_ms']:.3f} ms"],
        ["median search", f"{start['median_ms']:.3f} ms"],
        ["first by median", f"{start['first_by_median']:.2f}×"],
        ["the batch that made it ready", f"{start['untouched_ms']:.3f} ms"],
    ]
    if "cold_ready_s" in start:
        compiled = f"{start['cold_ready_s']:.1f} s, {start['cold_compiled']} forms compiled"
        rows.append(["from an empty cache to ready", compiled])
    console.print_table(
        f"a fresh process, kernels in the cache (median of {start['processes']})", ["what", "value"], rows
    )


def _show_limits(limits: dict[str, Any]) -> None:
    measured = {threads: limit for threads, limit in limits.items() if limit}
    if not measured:
        return
    sizes = [int(size) for size in next(iter(measured.values()))["read_gb_per_s"]]
    console.print_table(
        "limits of this machine, best of 15",
        ["what", *(f"{threads} thread(s)" for threads in measured)],
        [
            ["fp32 multiply-add, GFLOP/s", *(f"{limit['fp32_gflops']:.0f}" for limit in measured.values())],
            [
                f"int8 ({next(iter(measured.values()))['isa']}), GOP/s",
                *(f"{limit['int8_gops']:.0f}" for limit in measured.values()),
            ],
            *(
                [
                    f"read {size >> 10:,} KiB, GB/s",
                    *(f"{limit['read_gb_per_s'][str(size)]:.0f}" for limit in measured.values()),
                ]
                for size in sizes
            ),
        ],
    )


def _show_approximate(rows: Sequence[dict[str, Any]]) -> None:
    keys = list(dict.fromkeys((row["data"], row["n_items"], row["dim"]) for row in rows))
    for key in keys:
        own = [row for row in rows if (row["data"], row["n_items"], row["dim"]) == key]
        console.print_table(
            f"{key[0]} {key[1]:,} × {key[2]}, 1 thread, K{own[0]['k']}: recall and latency",
            ["method", "setting", "recall", *(f"B{batch} ms" for batch in own[0]["median_ms"])],
            [
                [
                    row["method"],
                    row["setting"],
                    f"{row['recall']:.4f}",
                    *(_ms(value) for value in row["median_ms"].values()),
                ]
                for row in own
            ],
        )


def _show_exclusions(rows: Sequence[dict[str, Any]]) -> None:
    first = rows[0]
    console.print_table(
        f"items excluded per query, {first['data']} {first['n_items']:,} × {first['dim']}, B{first['batch']}",
        ["items", "which", "K", "ms", "without", "ratio"],
        [
            [
                f"{row['count']:,}",
                row["kind"],
                row["k"],
                _ms(row["ms"]),
                _ms(row["without_ms"]),
                f"{row['ratio']:.2f}×",
            ]
            for row in rows
        ],
    )


def _show_speed_ups(rows: Sequence[dict[str, Any]]) -> None:
    console.print_table(
        "a batch split over threads, in turns with one thread, without peers",
        ["data", "items", "threads", "B", "K", "one ms", "ms", "ratio", "of the least"],
        [
            [
                row["data"],
                f"{row['n_items']:,} × {row['dim']}",
                row["threads"],
                row["batch"],
                row["k"],
                _ms(row["one_ms"]),
                _ms(row["ms"]),
                f"{row['ratio']:.2f}×",
                f"{row['least_ratio']:.2f}×",
            ]
            for row in rows
        ],
    )


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _figure(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if unit != "×" else f"{value:.3g}×"
