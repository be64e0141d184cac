"""Results as one picture or one page: latency distribution, throughput, recall and quality against latency.

A page is one file: pictures are SVG in its text, and it asks for nothing else. Panels are made of what the
given results hold; several results on one page are told apart by their file names.
"""

import html
import importlib.util
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recserve.benchmarks.compare import Figure, rows_of
from recserve.benchmarks.environment import machine_line
from recserve.benchmarks.kernels.timing import OURS
from recserve.benchmarks.load.report import load_name
from recserve.benchmarks.peers.report import draw as draw_servers
from recserve.benchmarks.scale.report import draw_axis
from recserve.errors import ConfigError, DataError, InvalidRequest

Result = Mapping[str, Any]
PANEL_INCHES = (6.4, 4.4)
N_COLUMNS = 2
TAIL_TICKS = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
# The most of the slow end that is drawn: one in 10,000.
LAST_SHARE = 0.9999
QUALITY, LATENCY = "ndcg@10", "p50_ms"
STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222}"
    "svg{max-width:100%;height:auto}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:2px 12px;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child"
    "{text-align:left}.machine{color:#666;font-size:12px;overflow-wrap:anywhere}.warning{color:#a33}"
)


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot: its title, and what draws it on matplotlib's axes."""

    title: str
    draw: Callable[[Any], None]


def check_paths(page: Path | None, picture: Path | None) -> None:
    """Raises ConfigError without matplotlib and InvalidRequest for other suffixes, before anything runs."""
    for name, path, suffix in (("--html", page, ".html"), ("--png", picture, ".png")):
        if path is None:
            continue
        if path.suffix != suffix:
            raise InvalidRequest(name, found=str(path), expected=f"a file that ends in {suffix}")
        if importlib.util.find_spec("matplotlib") is None:
            raise ConfigError(
                name,
                found="given without matplotlib",
                expected="an installation with the extra [bench]",
                cure="Run: pip install 'recserve[bench]'",
            )


def write(results: Mapping[str, Result], page: Path | None, picture: Path | None) -> None:
    """Writes the page, the picture or both; ``results`` by name."""
    figure = draw(results)
    if picture is not None:
        figure.savefig(picture, format="png", dpi=120)
    if page is not None:
        text = io.StringIO()
        figure.savefig(text, format="svg")
        page.write_text(_page(results, text.getvalue()), encoding="utf-8")


def draw(results: Mapping[str, Result]) -> Any:
    """Returns the figure with all panels."""
    # A figure of its own, without pyplot: nothing global is touched and no display is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    panels = panels_of(results)
    n_rows = -(-len(panels) // N_COLUMNS)
    width, height = PANEL_INCHES
    columns = min(N_COLUMNS, len(panels))
    canvas = Canvas(figsize=(width * columns, height * n_rows), layout="constrained")
    FigureCanvasAgg(canvas)
    for i, panel in enumerate(panels, start=1):
        axes = canvas.add_subplot(n_rows, columns, i)
        panel.draw(axes)
        axes.set_title(panel.title, fontsize=10)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7)
    return canvas


def panels_of(results: Mapping[str, Result]) -> list[Panel]:
    """Returns the panels for which the results have figures."""
    loads = {name: result for name, result in results.items() if result.get("points")}
    recalls = {name: result for name, result in results.items() if result.get("approximate")}
    qualities = {name: rows for name, result in results.items() if (rows := _quality_rows(result))}
    panels = [panel for name, result in results.items() for panel in _scale_panels(results, name, result)]
    for name, result in results.items():
        if result.get("bench") == "peers":
            panels.append(Panel(_label(results, name, "servers"), partial(draw_servers, result=result)))
    if loads:
        panels.append(
            Panel("latency from the due time, slow end stretched", lambda axes: _draw_cdf(axes, loads))
        )
        panels.append(Panel("throughput and latency", lambda axes: _draw_throughput(axes, loads)))
    if recalls:
        panels.append(Panel("recall and latency of top-K search", lambda axes: _draw_recall(axes, recalls)))
    if qualities:
        panels.append(Panel("quality and latency", lambda axes: _draw_quality(axes, qualities)))
    if not panels:
        raise DataError(
            "results", found="without anything to draw", expected="those of bench load or kernels"
        )
    return panels


def _scale_panels(results: Mapping[str, Result], name: str, result: Result) -> list[Panel]:
    """One per size that varies."""
    if result.get("bench") != "scale":
        return []
    by_axis: dict[str, list[Any]] = {}
    for row in result["rows"]:
        by_axis.setdefault(row["axis"], []).append(row)
    return [
        Panel(
            _label(results, name, f"cost by {axis}"),
            partial(draw_axis, axis=axis, rows=rows, fits=result["fits"]),
        )
        for axis, rows in by_axis.items()
    ]


def _draw_cdf(axes: Any, loads: Mapping[str, Result]) -> None:
    for name, result in loads.items():
        for point in result["points"]:
            drawn = [(ms, share) for ms, share in point["cdf"] if share <= LAST_SHARE]
            axes.plot(
                [_tail(share) for _, share in drawn],
                [ms for ms, _ in drawn],
                label=_label(loads, name, load_name(point)),
            )
    axes.set_yscale("log")
    axes.set_xticks([_tail(share) for share in TAIL_TICKS], [f"{100 * share:g}" for share in TAIL_TICKS])
    axes.set_xlabel("percentile")
    axes.set_ylabel("ms")


def _tail(share: float) -> float:
    """Every further nine takes the same room."""
    return -math.log10(max(1 - share, 1 - LAST_SHARE))


def _draw_throughput(axes: Any, loads: Mapping[str, Result]) -> None:
    for name, result in loads.items():
        points = sorted(result["points"], key=lambda point: float(point["answered_per_second"]))
        for percentile in [key for key in points[0]["latency_ms"] if key in ("p50", "p99")]:
            good = [point for point in points if point["latency_ms"][percentile] is not None]
            values = [point["latency_ms"][percentile] for point in good]
            bounds = [point["interval_ms"][percentile] for point in good]
            axes.errorbar(
                [point["answered_per_second"] for point in good],
                values,
                yerr=[
                    [max(value - low, 0) for value, (low, _) in zip(values, bounds, strict=True)],
                    [max(high - value, 0) for value, (_, high) in zip(values, bounds, strict=True)],
                ],
                marker="o",
                markersize=4,
                capsize=2,
                label=_label(loads, name, percentile),
            )
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("answers per second")
    axes.set_ylabel("ms, with 95 % interval")


def _draw_recall(axes: Any, results: Mapping[str, Result]) -> None:
    for name, result in results.items():
        rows = result["approximate"]
        batch = next(iter(rows[0]["median_ms"]))
        for method in dict.fromkeys(row["method"] for row in rows):
            points = sorted(
                (row["recall"], row["median_ms"][batch]) for row in rows if row["method"] == method
            )
            axes.plot(
                [recall for recall, _ in points],
                [ms for _, ms in points],
                marker="*" if method == OURS else "o",
                label=_label(results, name, f"{method}{' (exact)' * (method == OURS)}"),
            )
        axes.set_ylabel(f"ms per call, batch {batch}")
    axes.set_yscale("log")
    axes.set_xlabel("recall")


def _draw_quality(axes: Any, results: Mapping[str, dict[str, dict[str, Figure]]]) -> None:
    for name, rows in results.items():
        points = [(figures[LATENCY].value, figures[QUALITY].value, row) for row, figures in rows.items()]
        axes.scatter(
            [ms for ms, _, _ in points], [value for _, value, _ in points], label=_label(results, name, "")
        )
        for ms, value, row in points:
            axes.annotate(row, (ms, value), fontsize=7, xytext=(4, 4), textcoords="offset points")
        best = pareto([(ms, value) for ms, value, _ in points])
        axes.step([ms for ms, _ in best], [value for _, value in best], where="post", linewidth=1)
    axes.set_xlabel("median latency, ms")
    axes.set_ylabel(QUALITY)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points (cost, gain) that no other one beats in both, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or gain > best[-1][1]:
            best.append((cost, gain))
    return best


def _quality_rows(result: Result) -> dict[str, dict[str, Figure]]:
    if not isinstance(result.get("rows"), list):
        return {}
    return {name: row for name, row in rows_of(result).items() if QUALITY in row and LATENCY in row}


def _label(results: Mapping[str, Any], name: str, what: str) -> str:
    return what if len(results) == 1 else f"{name} {what}".rstrip()


def _page(results: Mapping[str, Result], svg: str) -> str:
    # What stands before the element itself names a DTD on the network.
    picture = svg[svg.index("<svg") :]
    parts = "".join(_section(name, result) for name, result in results.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">'
        f"<title>recserve bench: {_escape(', '.join(results))}</title><style>{STYLE}</style></head>"
        f"<body><h1>{_escape(', '.join(results))}</h1>{picture}{parts}</body></html>\n"
    )


def _section(name: str, result: Result) -> str:
    rows = rows_of(result)
    columns = list(dict.fromkeys(metric for figures in rows.values() for metric in figures))
    head = "".join(f"<th>{_escape(column)}</th>" for column in ["", *columns])
    body = "".join(
        f"<tr><td>{_escape(row)}</td>" + "".join(_cell(figures.get(column)) for column in columns) + "</tr>"
        for row, figures in rows.items()
    )
    warnings = "".join(
        f'<p class="warning">{_escape(load_name(point))}: {_escape(warning)}</p>'
        for point in result.get("points", [])
        for warning in point["warnings"]
    )
    machine = _escape(machine_line(result.get("environment", {})))
    target = f" of {_escape(result['target'])}" if "target" in result else ""
    units = "<p>Latencies in milliseconds from the due time.</p>" if "points" in result else ""
    return (
        f'<h2>{_escape(name)}{target}</h2><p class="machine">{machine}</p>{warnings}'
        f"{units}<table><tr>{head}</tr>{body}</table>"
    )


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "<td>–</td>"
    interval = "" if figure.low is None else f' title="95 % interval {figure.low:.4g} to {figure.high:.4g}"'
    return f"<td{interval}>{figure.value:,.4g}</td>"


def _escape(text: object) -> str:
    return html.escape(str(text))
