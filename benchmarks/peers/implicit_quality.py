"""Trains implicit's ALS and BPR on one split, tuned on validation; run by `benchmarks.quality`.

Usage: ``python implicit_quality.py SETTINGS.json``. Reads the ``arrays`` (.npz) that the settings name,
trains each of the ``grid`` of the ``model``, keeps the one with the best validation NDCG@10 and writes its
top-10 lists for the test histories to ``output``, with what it chose.
"""

import json
import sys
from typing import Any

import numpy as np
import scipy.sparse as sp
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking

K = 10
# The public name is a function that also knows GPUs.
ALS = type(AlternatingLeastSquares(factors=1))
MODELS = {"als": AlternatingLeastSquares, "bpr": BayesianPersonalizedRanking}


def _matrix(arrays: Any, prefix: str, shape: tuple[int, int]) -> sp.csr_matrix:
    user, item = arrays[f"{prefix}_user"], arrays[f"{prefix}_item"]
    matrix = sp.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape)
    matrix.data[:] = 1
    return matrix


def _top(model: Any, known: sp.csr_matrix, users: Any) -> Any:
    # ALS computes a user anew from what is known now; BPR has the user that it learned.
    anew = {"recalculate_user": True} if isinstance(model, ALS) else {}
    return model.recommend(users, known[users], N=K, filter_already_liked_items=True, **anew)[0]


def _ndcg(lists: Any, targets: sp.csr_matrix, users: Any) -> float:
    discounts = 1 / np.log2(np.arange(K) + 2)
    ideal = np.concatenate([[0], np.cumsum(discounts)])
    gains = []
    for row, user in zip(lists, users, strict=True):
        wanted = targets[user].indices
        gains.append(discounts[np.isin(row, wanted)].sum() / ideal[min(K, len(wanted))])
    return float(np.mean(gains))


def main() -> None:
    """Runs one model with one seed."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    arrays = np.load(settings["arrays"])
    shape = tuple(arrays["shape"])
    train, known = _matrix(arrays, "train", shape), _matrix(arrays, "known", shape)
    validation, users = _matrix(arrays, "validation", shape), arrays["test_user"]
    best, chosen, lists = -1.0, {}, np.empty((0, K))
    for options in settings["grid"]:
        model = MODELS[settings["model"]](random_state=settings["seed"], num_threads=1, **options)
        model.fit(train, show_progress=False)
        score = _ndcg(_top(model, train, users), validation, users)
        print(f"implicit {settings['model']} {options} validation NDCG@10 {score:.4f}", file=sys.stderr)
        if score > best:
            best, chosen, lists = score, options, _top(model, known, users)
    np.savez(settings["output"], lists=lists, chosen=json.dumps(chosen), best=best)


if __name__ == "__main__":
    main()
