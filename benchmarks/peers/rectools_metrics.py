"""Records what RecTools' metrics are on a small case; `tests/training/test_metric_peers.py` compares ours.

Usage, in an environment with `rectools==0.19.0`: ``python rectools_metrics.py > rectools_metrics.json``.
The case (lists, held-out items, training pairs, categories) is part of the record, so that the comparison
does not depend on a random generator.
"""

import importlib.metadata
import json
from typing import Any

import numpy as np
import pandas as pd
from rectools import metrics
from rectools.metrics import distances

N_USERS, N_ITEMS, K, N_CATEGORIES = 12, 40, 10, 6


Base: Any = distances.PairwiseDistanceCalculator


class Jaccard(Base):  # type: ignore[misc]
    """1 − shared categories over all categories of two items."""

    def __init__(self, categories: Any) -> None:
        self.categories = categories

    def _get_distances_for_item_pairs(self, items_0: Any, items_1: Any) -> Any:
        pairs = zip(items_0, items_1, strict=True)
        sets = [(set(self.categories[a]), set(self.categories[b])) for a, b in pairs]
        return np.array([1 - len(a & b) / len(a | b) for a, b in sets])


def make_case() -> dict[str, Any]:
    """Returns lists, held-out items (at most K a user), training items of each user and categories."""
    rng = np.random.default_rng(11)
    popularity = 1 / np.arange(1, N_ITEMS + 1)

    def draw(n: int) -> list[int]:
        drawn: list[int] = rng.choice(N_ITEMS, n, replace=False, p=popularity / popularity.sum()).tolist()
        return drawn

    return {
        "n_items": N_ITEMS,
        "lists": [rng.permutation(N_ITEMS)[:K].tolist() if user % 2 else draw(K) for user in range(N_USERS)],
        "held_out": [draw(int(n)) for n in rng.integers(1, K, N_USERS)],
        "train": [draw(int(n)) for n in rng.integers(1, 9, N_USERS)],
        "categories": [
            sorted(rng.choice(N_CATEGORIES, rng.integers(1, 4), replace=False).tolist())
            for _ in range(N_ITEMS)
        ],
    }


def frame(rows: list[list[int]]) -> pd.DataFrame:
    """Returns the pairs as RecTools wants them."""
    pairs = [
        (user, item, rank) for user, items in enumerate(rows) for rank, item in enumerate(items, start=1)
    ]
    return pd.DataFrame(pairs, columns=["user_id", "item_id", "rank"])


def main() -> None:
    """Prints the case and the values."""
    case = make_case()
    reco, held_out, train = frame(case["lists"]), frame(case["held_out"]), frame(case["train"])
    catalogue = range(N_ITEMS)
    diversity = metrics.IntraListDiversity(K, distance_calculator=Jaccard(case["categories"]))
    values = {
        "HR": metrics.HitRate(K).calc(reco, held_out),
        "recall": metrics.Recall(K).calc(reco, held_out),
        "NDCG": metrics.NDCG(K, divide_by_achievable=True).calc(reco, held_out),
        "MAP": metrics.MAP(K).calc(reco, held_out),
        "MRR": metrics.MRR(K).calc(reco, held_out),
        "novelty": metrics.MeanInvUserFreq(K).calc(reco, train),
        "average popularity": metrics.AvgRecPopularity(K).calc(reco, train),
        "serendipity": metrics.Serendipity(K).calc(reco, held_out, train, catalogue),
        "diversity": diversity.calc(reco),
        "coverage": metrics.CatalogCoverage(K, normalize=True).calc(reco, catalogue),
    }
    versions = {name: importlib.metadata.version(name) for name in ("rectools", "numpy", "pandas")}
    record = {"versions": versions, "case": case, "values": {k: float(v) for k, v in values.items()}}
    print(json.dumps(record, indent=None, separators=(",", ":")))


if __name__ == "__main__":
    main()
