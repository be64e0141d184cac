"""Our metrics against the values of RecTools and of RecBole for the same case (recorded with versions)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.training import list_metrics, metrics, rating_metrics
from recserve.training.list_metrics import Background
from recserve.training.ranking import metrics as click_metrics

RECORD: dict[str, Any] = json.loads(Path(__file__).with_name("rectools_metrics.json").read_text())
RECBOLE: dict[str, Any] = json.loads(Path(__file__).with_name("recbole_metrics.json").read_text())
CASE, VALUES = RECORD["case"], RECORD["values"]
K = 10


def ours() -> dict[str, float]:
    n_items, lists = CASE["n_items"], np.array(CASE["lists"], np.int32)
    ranks = [
        np.array([row.index(item) + 1 if item in row else np.inf for item in wanted], np.float64)
        for row, wanted in zip(CASE["lists"], CASE["held_out"], strict=True)
    ]
    categories = np.zeros((n_items, 1 + max(map(max, CASE["categories"]))), bool)
    for item, found in enumerate(CASE["categories"]):
        categories[item, found] = True
    background = Background(
        n_train_users=len(CASE["train"]),
        users_of_item=np.bincount(np.concatenate(CASE["train"]), minlength=n_items),
        categories=categories,
    )
    hits = np.array([np.isin(row, wanted) for row, wanted in zip(lists, CASE["held_out"], strict=True)])
    return {
        "HR": metrics.hit_rate(ranks, K).mean(),
        "recall": metrics.recall(ranks, K).mean(),
        "NDCG": metrics.ndcg(ranks, K).mean(),
        "MAP": metrics.average_precision(ranks, K).mean(),
        "MRR": metrics.reciprocal_rank(ranks, K).mean(),
        "novelty": list_metrics.novelty(lists, background).mean(),
        "average popularity": list_metrics.average_popularity(lists, background).mean(),
        "serendipity": list_metrics.serendipity(lists, hits, background).mean(),
        "diversity": list_metrics.intra_list_diversity(lists, categories).mean(),
        "coverage": list_metrics.coverage(list_metrics.recommended_counts(lists, n_items)),
    }


@pytest.mark.parametrize("name", sorted(VALUES))
def test_equals_rectools(name: str) -> None:
    assert ours()[name] == pytest.approx(VALUES[name], rel=1e-6)
    assert RECORD["versions"]["rectools"] == "0.19.0"


def test_equals_recbole() -> None:
    case = {name: np.array(value) for name, value in RECBOLE["case"].items()}
    counts = list_metrics.recommended_counts(case["lists"].astype(np.int32), int(case["n_items"]))
    probabilities, clicks = case["probabilities"], case["clicks"].astype(np.float64)
    ratings = case["predicted"], case["ratings"].astype(np.float64)
    found = {
        "AUC": click_metrics.auc(probabilities, clicks),
        "logloss": click_metrics.logloss(probabilities, clicks),
        "RMSE": rating_metrics.rmse(*ratings),
        "MAE": rating_metrics.mae(*ratings),
        "Gini": list_metrics.gini(counts),
        "coverage": list_metrics.coverage(counts),
    }
    assert found == pytest.approx(RECBOLE["values"], rel=1e-9)
    assert rating_metrics.mse(*ratings) == pytest.approx(RECBOLE["values"]["RMSE"] ** 2, rel=1e-9)
    # The mean of one user's AUC is that of the whole; RecBole weighs users by clicks, ours by examples.
    one_user = np.zeros(len(clicks), np.int64)
    assert click_metrics.gauc(probabilities, clicks, one_user) == pytest.approx(found["AUC"])
