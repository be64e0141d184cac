"""Records what RecBole's metrics of predictions and lists are, for `tests/training/test_metric_peers.py`.

Usage, in an environment with ``recbole.txt``: ``python recbole_metrics.py > recbole_metrics.json``. The case
is part of the record.
"""

import importlib.metadata
import json
from typing import Any

import numpy as np
from recbole.evaluator import metrics

N_EXAMPLES, N_USERS, N_ITEMS, K = 400, 30, 40, 10


def make_case() -> dict[str, Any]:
    """Returns predictions of clicks and of ratings, ties among them, and lists of items."""
    rng = np.random.default_rng(5)
    probabilities = rng.beta(2, 3, N_EXAMPLES).round(2).clip(0.01, 0.99)
    ratings = rng.integers(1, 6, N_EXAMPLES)
    return {
        "n_items": N_ITEMS,
        "probabilities": probabilities.tolist(),
        "clicks": (rng.random(N_EXAMPLES) < probabilities).astype(int).tolist(),
        "predicted": (ratings + rng.normal(0, 0.8, N_EXAMPLES)).round(4).tolist(),
        "ratings": ratings.tolist(),
        # RecBole counts what is listed: an item that never is has no entry, so ids are from 1 as in RecBole.
        "lists": [(1 + rng.permutation(N_ITEMS - 1)[:K]).tolist() for _ in range(N_USERS)],
    }


def bare(name: str) -> Any:
    """Returns a metric without its configuration, which the formula does not read."""
    kind = getattr(metrics, name)
    return kind.__new__(kind)


def main() -> None:
    """Prints the case and RecBole's values."""
    case = make_case()
    clicks, ratings = np.array(case["clicks"]), np.array(case["ratings"], np.float64)
    of_clicks, of_ratings = np.array(case["probabilities"]), np.array(case["predicted"])
    lists = np.array(case["lists"])
    values = {
        "AUC": bare("AUC").metric_info(of_clicks, clicks),
        "logloss": bare("LogLoss").metric_info(of_clicks, clicks),
        "RMSE": bare("RMSE").metric_info(of_ratings, ratings),
        "MAE": bare("MAE").metric_info(of_ratings, ratings),
        "Gini": bare("GiniIndex").get_gini(lists, N_ITEMS),
        "coverage": bare("ItemCoverage").get_coverage(lists, N_ITEMS),
    }
    versions = {name: importlib.metadata.version(name) for name in ("recbole", "scikit-learn", "numpy")}
    record = {"versions": versions, "case": case, "values": {name: float(v) for name, v in values.items()}}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
