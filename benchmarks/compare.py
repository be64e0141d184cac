"""Two results of the same benchmark side by side, and what must not become worse: ``recserve bench compare``.

A rule such as ``p99>+10%`` names a figure, a direction and a bound: a change in percent, or without the sign
of percent a value of the second result. A change breaks its rule when it is beyond the bound *and* the
intervals of the two figures, where there are any, do not meet: what a rerun could undo is no regression.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recserve import console
from recserve.benchmarks.kernels.timing import OURS
from recserve.errors import DataError, InvalidRequest, nearest

# What must be alike for figures to be comparable at all.
SAME = ("cpu", "cores", "usable_cores", "isa", "python")
RULE = re.compile(r"(?P<metric>[A-Za-z_][\w./]*)(?P<sign>[<>])(?P<bound>[+-]?\d+(?:\.\d+)?)(?P<percent>%?)")


@dataclass(frozen=True, slots=True)
class Figure:
    """A value, with the ends of its 95 % interval where that was measured."""

    value: float
    low: float | None = None
    high: float | None = None

    def meets(self, other: "Figure") -> bool:
        """Whether the intervals overlap; False where one is not known."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return False
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True)
class Rule:
    """``sign`` ">" breaks above ``bound``, "<" below; the bound is a percentage of change or a value."""

    metric: str
    sign: str
    bound: float
    is_change: bool

    def breaks(self, before: Figure, after: Figure) -> bool:
        """Whether the step from ``before`` to ``after`` breaks the rule."""
        if self.is_change:
            found = change(before, after)
            return self._beyond(found) and not before.meets(after)
        return self._beyond(after.value)

    def _beyond(self, found: float) -> bool:
        return found > self.bound if self.sign == ">" else found < self.bound

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}" + (f"{self.bound:+g}%" if self.is_change else f"{self.bound:g}")


Rows = dict[str, dict[str, Figure]]


def change(before: Figure, after: Figure) -> float:
    """Returns the change in percent; infinite from 0 to something."""
    if before.value == after.value:
        return 0.0
    return 100 * (after.value / before.value - 1) if before.value else float("inf")


def read_rules(texts: Sequence[str]) -> list[Rule]:
    """Reads rules such as ``p99>+10%``, ``answered_per_second<-5%`` or ``errors>0``."""
    rules = []
    for text in texts:
        found = RULE.fullmatch(text.replace(" ", ""))
        if found is None:
            raise InvalidRequest("--fail-if", found=text, expected="FIGURE>BOUND or <, such as 'p99>+10%'")
        rules.append(Rule(found["metric"], found["sign"], float(found["bound"]), bool(found["percent"])))
    return rules


def read_result(path: Path) -> dict[str, Any]:
    """Reads a result as a benchmark wrote it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"result {path}", found="not JSON", expected="what --out or --json wrote") from error
    if not isinstance(value, dict):
        raise DataError(f"result {path}", found="no object", expected="what --out or --json wrote")
    return value


def rows_of(result: Mapping[str, Any]) -> Rows:
    """Returns the figures of a result by the name of their row.

    Known forms: those of ``bench load``, ``bench kernels``, and any with ``rows`` whose texts and whole
    numbers name a row and whose other numbers are its figures; ``intervals`` has the ends of some.
    """
    if "points" in result:
        return {_load_key(point): _load_figures(point) for point in result["points"]}
    if "cases" in result:
        return {_kernel_key(case): _kernel_figures(case) for case in result["cases"]}
    if isinstance(rows := result.get("rows"), list):
        return dict(map(_named_figures, rows))
    raise DataError("result", found="of an unknown form", expected="one of bench load, kernels or with rows")


def _load_key(point: Mapping[str, Any]) -> str:
    if point["loop"] == "open":
        return f"{point['rate']:g}/s {point['arrivals']}"
    return f"{point['concurrency']} in flight"


def _load_figures(point: Mapping[str, Any]) -> dict[str, Figure]:
    bounds = point["interval_ms"]
    latency = {
        name: Figure(value, *bounds.get(name, (None, None)))
        for name, value in point["latency_ms"].items()
        if value is not None
    }
    errors = Figure(float(sum(point["errors"].values())))
    return latency | {"answered_per_second": Figure(point["answered_per_second"]), "errors": errors}


def _kernel_key(case: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={case[name]}" for name in ("data", "n_items", "dim", "threads", "batch", "k"))


def _kernel_figures(case: Mapping[str, Any]) -> dict[str, Figure]:
    figures = {
        "median_ms": Figure(case["median_ms"][OURS]),
        "hot_median_ms": Figure(case["hot_median_ms"][OURS]),
    }
    if case["ratio"]:
        figures["ratio"] = Figure(case["ratio"])
    return figures


def _named_figures(row: Mapping[str, Any]) -> tuple[str, dict[str, Figure]]:
    bounds = row.get("intervals", {})
    names = [str(value) for value in row.values() if not isinstance(value, float | dict)]
    figures = {
        name: Figure(value, *bounds.get(name, (None, None)))
        for name, value in row.items()
        if isinstance(value, float)
    }
    return " ".join(names), figures


def compare(before: Mapping[str, Any], after: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, Any]:
    """Returns the rows that both results have, their changes, and the ``broken`` ones with their rules."""
    first, second = rows_of(before), rows_of(after)
    common = [name for name in first if name in second]
    if not common:
        raise DataError("rows of the two results", found="different", expected="at least one in common")
    rows = []
    for name in common:
        figures = {metric: figure for metric, figure in first[name].items() if metric in second[name]}
        _check_rules(rules, figures)
        rows += [
            {
                "row": name,
                "figure": metric,
                "before": figure.value,
                "after": second[name][metric].value,
                "change_percent": _finite(change(figure, second[name][metric])),
                "within_noise": figure.meets(second[name][metric]),
                "broken": [
                    str(rule)
                    for rule in rules
                    if rule.metric == metric and rule.breaks(figure, second[name][metric])
                ],
            }
            for metric, figure in figures.items()
        ]
    machines = [result.get("environment", {}) for result in (before, after)]
    return {
        "rows": rows,
        "only_before": [name for name in first if name not in second],
        "only_after": [name for name in second if name not in first],
        "different_machine": [key for key in SAME if machines[0].get(key) != machines[1].get(key)],
    }


def _check_rules(rules: Sequence[Rule], figures: Mapping[str, Figure]) -> None:
    for rule in rules:
        if rule.metric not in figures:
            cure = nearest(rule.metric, figures)
            raise InvalidRequest(
                "--fail-if", found=rule.metric, expected=f"one of {', '.join(figures)}", cure=cure
            )


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def show(compared: Mapping[str, Any], note: Callable[[str], None] = console.note) -> None:
    """Prints the comparison; doubts go to stderr."""
    console.print_table(
        "before and after",
        ["row", "figure", "before", "after", "change", ""],
        [
            [
                row["row"],
                row["figure"],
                f"{row['before']:.4g}",
                f"{row['after']:.4g}",
                "–" if row["change_percent"] is None else f"{row['change_percent']:+.1f} %",
                "BROKEN " + " ".join(row["broken"])
                if row["broken"]
                else "within noise"
                if row["within_noise"]
                else "",
            ]
            for row in compared["rows"]
        ],
    )
    if compared["different_machine"]:
        note(f"warning: measured on different machines ({', '.join(compared['different_machine'])} differ)")
    for name, which in (("only_before", "first"), ("only_after", "second")):
        if compared[name]:
            note(f"note: only in the {which} result: {', '.join(compared[name])}")
