"""What diversity costs: the lists of one model, re-ranked by every method and weight, on the test set."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.errors import InvalidRequest
from recserve.kernels import Categories, calibrated, dpp, mmr
from recserve.kernels.diversity import unit_scores
from recserve.training.data import Histories
from recserve.training.evaluate import LIST_LENGTH, K, Lister, evaluate_lists, model_lister, steps
from recserve.training.list_metrics import Background, category_shares, vector_diversity
from recserve.training.loop import popularity_of
from recserve.training.metrics import bootstrap
from recserve.training.run import Run

Scores = NDArray[np.float32]
Items = NDArray[np.int32]

SCORE = "score"
WEIGHTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# How often all users are gone through.
N_POINTS = 1 + 3 * len(WEIGHTS)
# What the engine chooses a slate from.
N_CANDIDATES = 200
ACCURACY, DIVERSITY, VECTOR_DIVERSITY = "NDCG@10", "diversity@10", "vector diversity@10"
SHOWN = (ACCURACY, DIVERSITY, VECTOR_DIVERSITY)


def sweep(run: Run, on_progress: Callable[[int], None] = lambda n_users: None) -> dict[str, Any]:
    """Returns a point for each method and weight, that of the scores alone first.

    Diversity is that of ``evaluate``, by categories; vector diversity is what MMR and DPP look at. Raises
    :class:`InvalidRequest` where the model has no item vectors or the items no categories.
    """
    split, n_items, model = run.split(), run.dataset.n_items, run.best_model()
    background, n_users = Background.of(split.train, run.dataset), len(split.test.user_index)
    vectors = getattr(model, "item_embeddings", None)
    if vectors is None:
        raise InvalidRequest("--sweep", found=f"given for {run.config.model}", expected="a model of vectors")
    if background.categories is None:
        raise InvalidRequest("--sweep", found="given", expected="items with genres or categories")
    model.eval()
    lister = model_lister(model, split.test, popularity_of(split, n_items), N_CANDIDATES)
    parts = zip(*map(lister, steps(n_users)), strict=True)
    scores, items = (np.concatenate(part) for part in parts)
    table = vectors.detach().numpy()
    methods = _methods(table, split.test.histories, background.categories)
    points = []
    for name, choose in methods.items():
        for weight in (0.0,) if name == SCORE else WEIGHTS:
            lists = choose(unit_scores(scores, items), items, weight)
            found = evaluate_lists(
                _as_lister(lists), split.test, n_items, background=background, on_progress=on_progress
            )
            far = bootstrap(vector_diversity(lists[:, :K], table))
            metrics = {**found.as_dict()["metrics"], VECTOR_DIVERSITY: asdict(far)}
            points.append({"method": name, "weight": weight, "metrics": metrics})
    return {
        "run": str(run.folder),
        "model": run.config.model,
        "dataset": run.dataset.name,
        "protocol": f"{run.config.split}, full ranking, seen items filtered, {N_CANDIDATES} candidates",
        "n_users": n_users,
        "points": points,
    }


def _methods(
    vectors: Scores, histories: Histories, categories: NDArray[np.bool_]
) -> dict[str, Callable[[Scores, Items, float], Items]]:
    """Returns functions of scores (on 0 to 1), candidates and weight that choose LIST_LENGTH items."""
    owner, groups = np.nonzero(categories)
    indptr = np.searchsorted(owner, np.arange(len(categories) + 1)).astype(np.int64)
    of_items = Categories(indptr, groups.astype(np.int32), categories.shape[1])
    targets = category_shares(histories, categories)
    return {
        SCORE: lambda scores, items, weight: items[:, :LIST_LENGTH],
        "mmr": lambda scores, items, weight: mmr(scores, items, vectors, LIST_LENGTH, diversity=weight),
        "dpp": lambda scores, items, weight: dpp(scores, items, vectors, LIST_LENGTH, diversity=weight),
        "calibrated": lambda scores, items, weight: calibrated(
            scores, items, of_items, targets, LIST_LENGTH, weight=weight
        ),
    }


def _as_lister(lists: Items) -> Lister:
    # Places, not scores, order a slate that is no longer sorted by score.
    places = -np.arange(lists.shape[1], dtype=np.float32)
    return lambda rows: (np.where(lists[rows] >= 0, places, -np.inf).astype(np.float32), lists[rows])


def table(result: dict[str, Any]) -> list[list[str]]:
    """Returns a row per point: its means of SHOWN, and how they differ from those of the scores alone."""
    plain = result["points"][0]["metrics"]

    def cell(metrics: dict[str, Any], name: str) -> str:
        mean, before = metrics[name]["mean"], plain[name]["mean"]
        return f"{mean:.4f} {100 * (mean / max(before, 1e-12) - 1):+.1f}%"

    return [
        [point["method"], f"{point['weight']:g}", *(cell(point["metrics"], name) for name in SHOWN)]
        for point in result["points"]
    ]


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws accuracy against both diversities, a line per method, a dot per weight."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    plain = result["points"][0]
    for panel, across in zip(panels, (DIVERSITY, VECTOR_DIVERSITY), strict=True):
        for method in dict.fromkeys(point["method"] for point in result["points"][1:]):
            points = [plain, *(point for point in result["points"] if point["method"] == method)]
            means = [[point["metrics"][name]["mean"] for point in points] for name in (across, ACCURACY)]
            panel.plot(*means, "o-", label=method)
            for point, x, y in zip(points, *means, strict=True):
                panel.annotate(f"{point['weight']:g}", (x, y), fontsize=7)
        panel.set_xlabel(across)
    panels[0].set_ylabel(ACCURACY)
    panels[0].legend()
    figure.suptitle(f"{result['model']}, {result['dataset']}, {result['n_users']} users")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
