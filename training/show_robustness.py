"""The robustness report for a person: a table and a plot."""

from pathlib import Path
from typing import Any

from recserve import console
from recserve.training.show import estimate_text


def show_robustness(result: dict[str, Any]) -> None:
    """Prints a row per scenario."""
    rows = []
    for row in result["rows"]:
        shares = [f"{row[name]:.1%}" if name in row else "" for name in ("change", "same items")]
        rows.append([_name(row), estimate_text(row[result["metric"]]), *shares, _pushed(row)])
    console.print_table(
        f"{result['model']}, {result['dataset']}, {result['protocol']}, {result['n_users']} users "
        "[mean, 95 % interval]",
        ["trained with", result["metric"], "change", "same items", "users shown a target"],
        rows,
    )


def _name(row: dict[str, Any]) -> str:
    return f"{row['scenario']}: {row['setting']}" if row["setting"] else str(row["scenario"])


def _pushed(row: dict[str, Any]) -> str:
    if "score shift" not in row:
        return ""
    before, after = (f"{row[f'users shown a target{when}']:.1%}" for when in (" before", ""))
    return f"{before} → {after}, scores {row['score shift']:+.2f} sd"


def plot_robustness(result: dict[str, Any], path: Path) -> None:
    """Draws the metric of each scenario with its 95 % interval, that of the run as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = result["rows"][::-1]
    estimates = [row[result["metric"]] for row in rows]
    means = [one["mean"] for one in estimates]
    reach = [
        [one["mean"] - one["low"] for one in estimates],
        [one["high"] - one["mean"] for one in estimates],
    ]
    scenarios = list(dict.fromkeys(row["scenario"] for row in result["rows"]))
    colours = [f"C{scenarios.index(row['scenario']) % 10}" for row in rows]
    figure, panel = pyplot.subplots(figsize=(8, 0.28 * len(rows) + 1.2), layout="constrained")
    panel.barh(range(len(rows)), means, xerr=reach, capsize=2, color=colours)
    panel.set_yticks(range(len(rows)), [_name(row) for row in rows])
    panel.axvline(result["rows"][0][result["metric"]]["mean"], color="black", linewidth=0.8)
    panel.set_xlabel(result["metric"])
    figure.suptitle(f"{result['model']}, {result['dataset']}, {result['n_users']} users")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
