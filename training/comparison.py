"""Several runs on one test set: one table, one JSON, one plot."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recserve.errors import InvalidRequest
from recserve.training.evaluate import evaluate, evaluate_model, popularity_scorer
from recserve.training.list_metrics import Background
from recserve.training.loop import popularity_of
from recserve.training.models.ranker import Ranker
from recserve.training.ranking.evaluation import evaluate_predictions
from recserve.training.run import Run

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
# What the plot shows of the table, where the models have it.
PLOTTED = ("NDCG@10", "HR@10", "recall@10", "coverage@10", "novelty@10", "diversity@10", "RMSE")


def evaluate_runs(
    runs: list[Run], on_progress: Callable[[int], None] = lambda n_users: None
) -> dict[str, Any]:
    """Returns the test evaluation of each run's best model, by the name of its folder, and of popularity.

    Raises :class:`InvalidRequest` unless the runs have the same data and the same split.
    """
    check_comparable(runs)
    first = runs[0]
    split, n_items = first.split(), first.dataset.n_items
    popularity, background = popularity_of(split, n_items), Background.of(split.train, first.dataset)
    models = {}
    for run, label in zip(runs, labels(runs), strict=True):
        found = evaluate_model(
            run.best_model(), split.test, popularity, background=background, on_progress=on_progress
        )
        models[label] = found.as_dict() | {
            "run": str(run.folder),
            "seed": run.config.loop.seed,
            "checkpoint_sha256": run.checkpoint_sha256(),
        }
    baseline = evaluate(
        popularity_scorer(popularity), split.test, n_items, background=background, on_progress=on_progress
    )
    return {
        "dataset": first.dataset.name,
        "protocol": f"{first.config.split}, full ranking, seen items filtered",
        "n_items": n_items,
        "n_users": len(split.test.user_index),
        "warnings": first.warnings(),
        "models": models,
        "popularity": baseline.as_dict(),
    }


def of_one_run(model: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Returns what is kept beside the run: its model and popularity, and which weights they were."""
    about = ("run", "seed", "checkpoint_sha256")
    return {
        **{name: model[name] for name in about},
        **{name: result[name] for name in ("dataset", "protocol", "n_items", "warnings", "popularity")},
        "model": {name: value for name, value in model.items() if name not in about},
    }


def predictions_of(run: Run) -> dict[str, Any] | None:
    """Returns how a ranker trained on ratings predicts the test interactions; None for every other model."""
    model = run.best_model()
    if not isinstance(model, Ranker) or not model.labels.is_rated:
        return None
    return {
        "run": str(run.folder),
        "dataset": run.dataset.name,
        "n_items": run.dataset.n_items,
        "warnings": run.warnings(),
        "seed": run.config.loop.seed,
        "checkpoint_sha256": run.checkpoint_sha256(),
        "protocol": f"{run.config.split}, rated {model.labels.click_at:g} or more is a click",
        **evaluate_predictions(model, run.split()),
    }


def labels(runs: list[Run]) -> list[str]:
    """Returns the names of the run folders, or their paths where two have one name."""
    names = [run.folder.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def check_comparable(runs: list[Run]) -> None:
    """Raises :class:`InvalidRequest` unless the runs were tested on the same interactions."""
    first = runs[0]
    for run in runs[1:]:
        for name, found, expected in (
            ("data", run.dataset.sha256[:12], first.dataset.sha256[:12]),
            ("split", run.config.split, first.config.split),
        ):
            if found != expected:
                raise InvalidRequest(
                    f"{name} of run {run.folder}",
                    found=found,
                    expected=f"{expected}, as of {first.folder}",
                    cure="Only runs on the same data and split compare.",
                )


def check_plot(path: Path) -> None:
    """Raises :class:`InvalidRequest` where the plot could not be written: before anything is measured."""
    if path.suffix not in PLOT_SUFFIXES:
        raise InvalidRequest(
            "--plot", found=path.name, expected=f"a name ending in {', '.join(PLOT_SUFFIXES)}"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidRequest(
            "--plot", found="given", expected="matplotlib installed", cure="Run: pip install matplotlib"
        )


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws means with their 95 % intervals, a panel per metric, a bar per model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = result["models"] | {"popularity": result["popularity"]}
    shown = [name for name in PLOTTED if any(name in model["metrics"] for model in models.values())]
    figure, panels = pyplot.subplots(1, len(shown), figsize=(2.6 * len(shown), 3.6), layout="constrained")
    for panel, metric in zip(panels, shown, strict=True):
        rows = {
            name: model["metrics"][metric] for name, model in models.items() if metric in model["metrics"]
        }
        means = [row["mean"] for row in rows.values()]
        reach = [
            [row["mean"] - row["low"] for row in rows.values()],
            [row["high"] - row["mean"] for row in rows.values()],
        ]
        panel.bar(range(len(rows)), means, yerr=reach, capsize=3, color=[f"C{i}" for i in range(len(rows))])
        panel.set_xticks(range(len(rows)), list(rows), rotation=45, ha="right")
        panel.set_title(metric)
    figure.suptitle(f"{result['dataset']}, {result['protocol']}, {result['n_users']} users")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
