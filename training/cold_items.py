"""How well items are ranked that nobody had in training: cold items alone, for who took one later."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recserve.errors import DataError, InvalidRequest
from recserve.training import metrics
from recserve.training.comparison import check_comparable, labels
from recserve.training.data import Dataset, EvaluationSet, Histories
from recserve.training.evaluate import model_scorer, ranks_of, steps
from recserve.training.loop import popularity_of
from recserve.training.run import Run

K, N_RECALLED = 10, 20
METRICS = (f"NDCG@{K}", f"recall@{N_RECALLED}")
RANDOM, CATEGORY = "random", "popularity in category"
Scores = NDArray[np.float32]


def evaluate_cold_items(
    runs: list[Run], category: str = "", on_progress: Callable[[int], None] = lambda n_users: None
) -> dict[str, Any]:
    """Returns the metrics of each run's best model and of baselines on the cold items of the test.

    Cold is an item without an interaction in training. Tested are the users with a history who took one in
    the test that they did not have; only cold items are ranked for them. ``category``: an attribute of the
    items, by which a baseline ranks: how often the user had its value, then how popular it is. Raises
    :class:`InvalidRequest` for runs that do not compare, :class:`DataError` where nothing is cold.
    """
    check_comparable(runs)
    run = runs[0]
    split, dataset = run.split(), run.dataset
    popularity = popularity_of(split, dataset.n_items)
    cold = np.flatnonzero(popularity == 0)
    test = with_cold_targets(split.test, cold)
    if not len(test.user_index):
        raise DataError(
            "users who took an item unseen in training",
            found="none",
            expected="some",
            cure="Train with --split temporal --every-item on data whose items come and go.",
        )
    n_users = len(test.user_index)
    noise = np.random.default_rng(0).random((n_users, len(cold))).astype(np.float32)
    scores = {RANDOM: noise}
    if category:
        codes = codes_of(dataset, category)
        scores[CATEGORY] = category_scores(codes, popularity, test.histories, cold) + 1e-3 * noise
    for one, label in zip(runs, labels(runs), strict=True):
        scorer, parts = model_scorer(one.best_model(), test, popularity), []
        for rows in steps(n_users, dataset.n_items):
            parts.append(scorer(rows)[:, cold])
            on_progress(len(rows))
        scores[label] = np.concatenate(parts)
    return {
        "dataset": dataset.name,
        "protocol": f"{run.config.split}, cold items alone",
        "n_users": n_users,
        "n_cold_items": len(cold),
        "models": {name: _measured(test, cold, found) for name, found in scores.items()},
    }


def with_cold_targets(held_out: EvaluationSet, cold: NDArray[np.int64]) -> EvaluationSet:
    """Returns the users with a history, and of their targets those cold items that they did not have."""
    known, targets = held_out.histories, held_out.targets
    factor = int(max(known.item_index.max(initial=0), targets.item_index.max(initial=0))) + 1
    codes = [
        np.repeat(np.arange(len(part)), part.lengths) * factor + part.item_index for part in (known, targets)
    ]
    kept = np.isin(targets.item_index, cold) & ~np.isin(codes[1], codes[0])
    row = (codes[1] // factor)[kept]
    found = Histories.from_sorted(
        row, targets.item_index[kept], targets.timestamp[kept], len(known), targets.value[kept]
    )
    rows = np.flatnonzero((known.lengths > 0) & (found.lengths > 0))
    return EvaluationSet(held_out.user_index[rows], known.take(rows), found.take(rows))


def codes_of(dataset: Dataset, category: str) -> NDArray[np.int64]:
    """Returns a number for each value of an attribute of the items (of a list: its first), (n_items,)."""
    if category not in dataset.items.columns:
        raise InvalidRequest(
            "--category", found=category, expected=f"one of {', '.join(dataset.items.columns)}"
        )
    column = dataset.items[category]
    values = column.list.first() if isinstance(column.dtype, pl.List) else column
    return values.cast(pl.String).fill_null("").rank("dense").to_numpy().astype(np.int64) - 1


def category_scores(
    codes: NDArray[np.int64], popularity: NDArray[np.int64], histories: Histories, cold: NDArray[np.int64]
) -> Scores:
    """Returns (n_users, n_cold): how often the user had of an item's category, then how popular that is.

    ``codes``: the category of each item, (n_items,); its popularity is the mean of ``popularity`` (n_items,).
    """
    n = int(codes.max(initial=0)) + 1
    known = popularity > 0
    worth = np.bincount(codes, popularity, n) / np.maximum(1, np.bincount(codes[known], minlength=n))
    had = np.zeros((len(histories), n), np.float32)
    row = np.repeat(np.arange(len(histories)), histories.lengths)
    np.add.at(had, (row, codes[histories.item_index]), 1)
    scores: Scores = (had + 0.5 * worth / worth.max())[:, codes[cold]].astype(np.float32)
    return scores


def _measured(test: EvaluationSet, cold: NDArray[np.int64], scores: Scores) -> dict[str, Any]:
    ranks = []
    for i, row in enumerate(scores):
        # As in full ranking, what the user has is not offered.
        offered = np.where(np.isin(cold, test.histories.row(i)[0]), np.float32(-np.inf), row)
        places = np.searchsorted(cold, np.unique(test.targets.row(i)[0])).astype(np.int32)
        ranks.append(ranks_of(offered, places))
    values = (metrics.ndcg(ranks, K), metrics.recall(ranks, N_RECALLED))
    return {name: asdict(metrics.bootstrap(own)) for name, own in zip(METRICS, values, strict=True)}
