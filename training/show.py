"""Results of training for a person: the tables of ``evaluate`` and the report of cleaning."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recserve import console

if TYPE_CHECKING:
    from recserve.training.run import Run


def show_evaluation(result: dict[str, Any]) -> None:
    """Prints one table of all models, metric by metric."""
    show_warnings(result["warnings"])
    models = result["models"] | {"popularity": result["popularity"]}
    for name, model in models.items():
        if unreachable := model["n_unreachable_targets"]:
            console.note(
                f"note: {unreachable} held-out items had been seen before; the filter removes them, "
                f"so they count as missed ({name})"
            )
            break
    metrics = list(dict.fromkeys(name for model in models.values() for name in model["metrics"]))
    console.print_table(
        f"{result['dataset']}, {result['protocol']}, {result['n_users']} users [mean, 95 % interval]",
        ["metric", *models],
        [
            [metric, *(estimate_text(model["metrics"].get(metric)) for model in models.values())]
            for metric in metrics
        ],
    )


def show_predictions(run: "Run", result: dict[str, Any]) -> None:
    """Prints what a ranker predicts next to the mean of the item."""
    show_warnings(result["warnings"])
    names = list(result["model"]["metrics"])
    console.print_table(
        f"{run.config.model} on {run.dataset.name}, {result['protocol']}, "
        f"{result['n_examples']} examples of {result['n_users']} users, "
        f"{result['n_unknown_users']} of them not in training [95 % interval over users]",
        ["metric", run.config.model, "item mean"],
        [
            [name, *(estimate_text(result[side]["metrics"][name]) for side in ("model", "item mean"))]
            for name in names
        ],
    )


def show_cold_start(result: dict[str, Any]) -> None:
    """Prints what ``cold_start.evaluate_cold_start`` returned."""
    console.print_table(
        f"{result['dataset']}, {result['protocol']}, {result['n_users']} users [mean, 95 % interval]",
        ["newest events known", "answered by", result["metric"]],
        [
            ["all" if row["events"] is None else row["events"], row["source"], estimate_text(row)]
            for row in result["rows"]
        ],
    )


def show_cold_items(result: dict[str, Any]) -> None:
    """Prints what ``cold_items.evaluate_cold_items`` returned."""
    models = result["models"]
    console.print_table(
        f"{result['dataset']}, {result['protocol']}: {result['n_cold_items']:,} for "
        f"{result['n_users']:,} users [mean, 95 % interval]",
        ["model", *next(iter(models.values()))],
        [[name, *(estimate_text(value) for value in found.values())] for name, found in models.items()],
    )


def show_folds(result: dict[str, Any]) -> None:
    """Prints what ``cross_validation.cross_validate`` returned."""
    models = result["models"]
    rows: list[list[object]] = []
    for metric in next(iter(models.values()))["metrics"]:
        rows.append([metric, *(estimate_text(model["metrics"][metric]) for model in models.values())])
    for number, _ in enumerate(next(iter(models.values()))["folds"]):
        folds = [model["folds"][number] for model in models.values()]
        texts = [f"{fold['RMSE']:.4f} ({fold['epochs']} epochs)" for fold in folds]
        rows.append([f"RMSE of fold {number + 1}", *texts])
    spread = [model["over_folds"]["RMSE"] for model in models.values()]
    rows.append(["RMSE over folds", *(f"{one['mean']:.4f} ± {one['deviation']:.4f}" for one in spread)])
    console.print_table(
        f"{result['dataset']}, {result['protocol']}, {result['n_ratings']:,} ratings of "
        f"{result['n_users']:,} users [95 % interval over users; mean ± standard deviation]",
        ["metric", *models],
        rows,
    )


def show_cleaning(run: "Run") -> None:
    """Prints what cleaning kept and dropped and what is odd in the rest, to stderr with the progress."""
    console.note("cleaning report")
    dataset = run.dataset
    report = dataset.report
    for label, count, detail in (
        ("rows read", report.rows_read, ""),
        ("missing", sum(report.missing.values()), _by_column(report.missing)),
        ("bad types", sum(report.bad_type.values()), _by_column(report.bad_type)),
        ("out of range", sum(report.out_of_range.values()), _by_column(report.out_of_range)),
        ("duplicates", report.duplicates, ""),
        ("below k-core", report.below_core, ""),
        ("kept", report.kept, ""),
    ):
        console.note(f"  {label:<13}{count:>12,}{detail}")
    console.note(
        f"data set: {dataset.name}  users {dataset.n_users:,}  items {dataset.n_items:,}  "
        f"interactions {dataset.interactions.height:,}"
    )
    show_warnings(run.warnings())


def show_warnings(warnings: Mapping[str, int]) -> None:
    """Prints what is odd in the data, and how often, to stderr."""
    for name, count in warnings.items():
        console.note(f"  warning: {count:,} {name}")


def _by_column(counts: Mapping[str, int]) -> str:
    return f"  ({', '.join(f'{name} {count:,}' for name, count in counts.items())})" if counts else ""


def estimate_text(estimate: dict[str, float] | None) -> str:
    """Returns a mean with its interval, where it has one."""
    if estimate is None:
        return "–"
    if estimate["low"] == estimate["high"]:
        return f"{estimate['mean']:.4f}"
    return f"{estimate['mean']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]"
