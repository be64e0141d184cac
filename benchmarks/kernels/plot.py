"""The result as a picture: how many times faster than the best exact peer, and recall against latency."""

import html
import importlib.util
import io
from pathlib import Path
from typing import Any

from recserve.benchmarks.environment import machine_line
from recserve.benchmarks.kernels.report import percent
from recserve.benchmarks.kernels.timing import OURS
from recserve.errors import ConfigError, InvalidRequest

Result = dict[str, Any]
SUFFIXES = (".png", ".svg", ".html")
PANEL_INCHES = (5.6, 4.2)
BAR_INCHES = 0.2
OURS_COLOUR, BAR_COLOUR = "#c1272d", "#4c72b0"


def check_path(path: Path) -> None:
    """Raises InvalidRequest for a file that no picture can be written to, ConfigError without matplotlib."""
    if path.suffix not in SUFFIXES:
        raise InvalidRequest("--plot", found=str(path), expected=f"a file that ends in {', '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "--plot",
            found="given without matplotlib",
            expected="an installation with the extra [bench]",
            cure="Run: pip install 'recserve[bench]'",
        )


def write(result: Result, path: Path) -> None:
    """Writes a PNG, an SVG or an HTML page, by the suffix of ``path``."""
    figure = draw(result)
    if path.suffix == ".html":
        text = io.StringIO()
        figure.savefig(text, format="svg")
        path.write_text(_page(result, text.getvalue()), encoding="utf-8")
    else:
        figure.savefig(path, format=path.suffix.removeprefix("."), dpi=120)


def draw(result: Result) -> Any:
    """The figure: a panel of ratios, then one of recall against latency by catalogue and batch size."""
    # A figure of its own, without pyplot: nothing global is touched and no display is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [case for case in result["cases"] if case["ratio"] and case["threads"] == 1]
    catalogues = list(
        dict.fromkeys((row["data"], row["n_items"], row["dim"]) for row in result["approximate"])
    )
    batches = list(result["approximate"][0]["median_ms"]) if catalogues else []
    n_rows = max(1, len(batches))
    width, height = PANEL_INCHES
    figure = Figure(
        figsize=(width * (1 + len(catalogues)), max(n_rows * height, BAR_INCHES * len(shown))),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(n_rows, 1 + len(catalogues))
    _draw_ratios(figure.add_subplot(grid[:, 0]), shown)
    for column, key in enumerate(catalogues, start=1):
        rows = [row for row in result["approximate"] if (row["data"], row["n_items"], row["dim"]) == key]
        for line, batch in enumerate(batches):
            _draw_recall(figure.add_subplot(grid[line, column]), rows, batch)
    environment = result["environment"]
    figure.suptitle(f"{environment['cpu']}, {environment['cores']} cores, {environment['date']}", fontsize=8)
    return figure


def _draw_ratios(panel: Any, shown: list[dict[str, Any]]) -> None:
    labels = [
        f"{case['data']} {_count(case['n_items'])} × {case['dim']} B{case['batch']} K{case['k']}"
        for case in shown
    ]
    bars = panel.barh(range(len(shown)), [case["ratio"] for case in shown], color=BAR_COLOUR)
    panel.bar_label(
        bars, [f"{case['ratio']:.1f}× {case['best_peer']}" for case in shown], fontsize=7, padding=2
    )
    panel.set_yticks(range(len(shown)), labels, fontsize=7)
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.axvline(1, color="black", linewidth=0.8)
    panel.set_xlim(0.5, 10 * max([1.0, *(case["ratio"] for case in shown)]))
    panel.set_title("times faster than the best exact peer, 1 thread", fontsize=9)


def _draw_recall(panel: Any, rows: list[dict[str, Any]], batch: str) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted((row["recall"], row["median_ms"][batch]) for row in rows if row["method"] == method)
        ours = method == OURS
        panel.plot(
            [recall for recall, _ in points],
            [milliseconds for _, milliseconds in points],
            marker="*" if ours else "o",
            markersize=14 if ours else 4,
            color=OURS_COLOUR if ours else None,
            linestyle="none" if ours else "-",
            label=f"{method} (exact)" if ours else method,
        )
    panel.set_yscale("log")
    panel.set_xlabel(f"recall@{rows[0]['k']}")
    panel.set_ylabel(f"ms per call, batch {batch}, 1 thread")
    panel.set_title(f"{rows[0]['data']} {rows[0]['n_items']:,} × {rows[0]['dim']}", fontsize=9)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=6)


def _count(n_items: int) -> str:
    return f"{n_items / 1e6:.3g}M" if n_items >= 1_000_000 else f"{n_items / 1e3:.3g}k"


def _page(result: Result, svg: str) -> str:
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(str(cell))}</td>"
            for cell in (
                case["data"],
                f"{case['n_items']:,} × {case['dim']}",
                case["threads"],
                case["batch"],
                case["k"],
                f"{case['median_ms'][OURS]:.3f}",
                case["best_peer"] or "–",
                f"{case['ratio']:.1f}" if case["ratio"] else "–",
                percent(case["scanned"]),
            )
        )
        + "</tr>"
        for case in result["cases"]
    )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("data", "items", "threads", "batch", "k", "ms", "best exact peer", "ratio", "scanned %")
    )
    line = html.escape(machine_line(result["environment"]))
    return (
        '<!doctype html><meta charset="utf-8"><title>recserve bench kernels</title>'
        "<style>body{font:14px sans-serif}td,th{padding:2px 10px;text-align:right}svg{max-width:100%}</style>"
        f"<h1>Exact top-K against its peers</h1><p>{line}</p>{svg[svg.index('<svg') :]}"
        f"<table><tr>{head}</tr>{rows}</table>\n"
    )
