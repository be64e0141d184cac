"""Popularity and EASE in NumPy, without a line of ours; run by `benchmarks.quality` in its own interpreter.

Usage: ``python numpy_baselines.py SETTINGS.json``. Reads the ``arrays`` (.npz) that the settings name and
writes top-10 lists for the test users to ``output``.
"""

import json
import sys

import numpy as np

K = 10


def main() -> None:
    """Runs one model."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    arrays = np.load(settings["arrays"])
    n_users, n_items = arrays["shape"]
    train, known = np.zeros((n_users, n_items), np.float32), np.zeros((n_users, n_items), np.float32)
    train[arrays["train_user"], arrays["train_item"]] = 1
    known[arrays["known_user"], arrays["known_item"]] = 1
    if settings["model"] == "popularity":
        counts = np.bincount(arrays["train_item"], minlength=n_items)
        weights = np.broadcast_to(counts.astype(np.float64), (n_users, n_items))
    else:
        # Steck 2019: B = I − P · diag(1 / diag P), P the inverse of the regularised gram matrix.
        gram = (train.T @ train).astype(np.float64)
        inverse = np.linalg.inv(gram + settings["settings"]["reg"] * np.eye(n_items))
        items = -inverse / np.diag(inverse)
        np.fill_diagonal(items, 0)
        weights = known @ items.astype(np.float32)
    scores = np.where(known > 0, -np.inf, weights)[arrays["test_user"]]
    np.savez(settings["output"], lists=np.argsort(-scores, axis=1, kind="stable")[:, :K])


if __name__ == "__main__":
    main()
