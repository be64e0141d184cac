"""The result as tables for a person, and as rows for a spreadsheet."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recserve import console
from recserve.benchmarks.environment import machine_line

Point = dict[str, Any]
FIRST_CODES = 3


def show(result: dict[str, Any]) -> None:
    """Prints everything to stdout, and what makes it doubtful to stderr."""
    console.stdout.print(machine_line(result["environment"]), markup=False, soft_wrap=True)
    points = result["points"]
    if len(points) == 1:
        _show_one(result["target"], points[0])
    else:
        _show_many(result["target"], points)
    if "found" in result:
        _show_found(result["found"])
    warm = points[-1]["warm_up"]
    median = f", median {milliseconds(warm['p50_ms'])} ms" if warm["p50_ms"] is not None else ""
    console.stdout.print(
        f"not counted: {warm['seconds']:g} s of warm-up, {warm['requests']:,} requests{median}"
    )
    for point in points:
        for warning in point["warnings"]:
            console.note(f"warning: {load_name(point)}: {warning}")


def _show_found(found: dict[str, Any]) -> None:
    slos = ", ".join(found["slos"])
    if found["rate"] is None:
        console.stdout.print(f"no rate from {found['lowest']:,.0f} req/s up holds {slos}")
    else:
        above = f"; {found['broke_at']:,.0f} do not" if found["broke_at"] else "; the search ended there"
        console.stdout.print(f"{found['rate']:,.0f} req/s hold {slos}{above}")


def _show_one(target: str, point: Point) -> None:
    figures, bounds = point["latency_ms"], point["interval_ms"]
    console.print_table(
        f"{target}, {load_name(point)}: {point['answered_per_second']:,.0f} req/s, latency from the due time",
        ["", "ms", "95 % interval"],
        [[name, _figure(value), _bounds(bounds.get(name))] for name, value in figures.items()],
    )
    goodput = f", {point['goodput_per_second']:,.0f} req/s within the SLOs" if "slos" in point else ""
    console.stdout.print(f"{point['requests']:,} requests, errors: {error_text(point['errors'])}{goodput}")
    for slo, held in point.get("slos", {}).items():
        console.stdout.print(f"  {slo} {'held' if held else 'BROKEN'}", markup=False)
    _show_kinds(point)
    _show_stages(point)


def _show_kinds(point: Point) -> None:
    if kinds := point["kinds"]:
        names = list(point["latency_ms"])
        console.print_table(
            "by kind, ms",
            ["kind", "requests", *names, "errors"],
            [
                [
                    kind,
                    f"{found['requests']:,}",
                    *(_figure(found["latency_ms"][name]) for name in names),
                    error_text(found["errors"]),
                ]
                for kind, found in kinds.items()
            ],
        )


def _show_many(target: str, points: Sequence[Point]) -> None:
    names = [name for name in points[0]["latency_ms"] if name != "mean"]
    console.print_table(
        f"{target}, {points[0]['arrivals']} arrivals: latency in ms from the due time",
        ["load", "req/s", *names, "errors", *(["SLOs"] if "slos" in points[0] else [])],
        [
            [
                load_name(point),
                f"{point['answered_per_second']:,.0f}",
                *(_figure(point["latency_ms"][name]) for name in names),
                error_text(point["errors"]),
                *(["held" if all(point["slos"].values()) else "BROKEN"] if "slos" in point else []),
            ]
            for point in points
        ],
    )


def _show_stages(point: Point) -> None:
    if point["stages_ms"]:
        console.print_table(
            "where the time goes, ms",
            ["stage", "mean", "p50", "p99"],
            [
                [name, *(f"{times[key]:.3f}" for key in ("mean", "p50", "p99"))]
                for name, times in point["stages_ms"].items()
            ],
        )


def load_name(point: Point) -> str:
    """The load in words."""
    if point["loop"] == "open":
        return f"{point['rate']:,.0f}/s"
    return f"{point['concurrency']} in flight"


def _figure(value: float | None) -> str:
    return "–" if value is None else milliseconds(value)


def _bounds(bounds: Sequence[float] | None) -> str:
    return f"{milliseconds(bounds[0])} to {milliseconds(bounds[1])}" if bounds else ""


def milliseconds(value: float) -> str:
    """Three digits that matter."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def error_text(errors: dict[str, int]) -> str:
    """The commonest codes and their counts."""
    first = list(errors.items())[:FIRST_CODES]
    return ", ".join(f"{name} {count:,}" for name, count in first) or "0"


def write_csv(points: Sequence[Point], path: Path) -> None:
    """Writes one line per point."""
    codes = sorted({code for point in points for code in point["errors"]})
    percentiles = list(points[0]["latency_ms"])
    head = ["loop", "rate", "concurrency", "arrivals", "requests", "seconds", "answered_per_second"]
    columns = [*head, *(f"{name}_ms" for name in percentiles), *(f"errors_{code}" for code in codes)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for point in points:
            writer.writerow(
                [
                    *(point[name] for name in head),
                    *(point["latency_ms"][name] for name in percentiles),
                    *(point["errors"].get(code, 0) for code in codes),
                ]
            )
