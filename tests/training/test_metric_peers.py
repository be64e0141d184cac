"""Our metrics against the values that RecTools gives for the same lists (recorded with their versions)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.training import list_metrics, metrics
from recserve.training.list_metrics import Background

RECORD: dict[str, Any] = json.loads(Path(__file__).with_name("rectools_metrics.json").read_text())
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
