"""Trains cornac's NeuMF or GRU4Rec on one split, tuned on validation; run by `benchmarks.quality`.

Usage: ``python cornac_models.py SETTINGS.json``. Reads the ``arrays`` (.npz) that the settings name, trains
each of the ``grid``, the number of epochs among it, keeps the one with the best validation NDCG@10 and writes
its top-10 lists for the test histories to ``output``.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cornac.data import Dataset, SequentialDataset
from cornac.models import GRU4Rec, NeuMF

K = 10
# The name of what is known → scores of the test users, (n_users, n_items).
Scorer = Callable[[str], Any]


def train_neumf(arrays: Any, seed: int, options: dict[str, Any]) -> Scorer:
    """What is known at test time changes nothing: a user is the vector that was learned."""
    pairs = zip(arrays["train_user"].tolist(), arrays["train_item"].tolist(), strict=True)
    data = Dataset.from_uir([(user, item, 1.0) for user, item in pairs], seed=seed)
    model = NeuMF(backend="pytorch", seed=seed, verbose=False, **options).fit(data)

    def score(known: str) -> Any:
        del known
        scores = np.full((len(arrays["test_user"]), arrays["shape"][1]), -np.inf)
        for row, user in enumerate(arrays["test_user"].tolist()):
            scores[row, list(data.iid_map)] = model.score(data.uid_map[user])
        return scores

    return score


def train_gru4rec(arrays: Any, seed: int, options: dict[str, Any]) -> Scorer:
    """A session is a user's whole history, in time order."""
    pairs = zip(arrays["train_user"].tolist(), arrays["train_item"].tolist(), strict=True)
    rows = [(user, item, place) for place, (user, item) in enumerate(pairs)]
    data = SequentialDataset.from_sit(rows, seed=seed)
    model = GRU4Rec(seed=seed, device="cpu", verbose=False, **options).fit(data)

    def score(known: str) -> Any:
        histories: dict[int, list[int]] = {user: [] for user in arrays["test_user"].tolist()}
        pairs = zip(arrays[f"{known}_user"].tolist(), arrays[f"{known}_item"].tolist(), strict=True)
        for user, item in pairs:
            if user in histories and item in data.iid_map:
                histories[user].append(data.iid_map[item])
        scores = np.full((len(histories), arrays["shape"][1]), -np.inf)
        for row, history in enumerate(histories.values()):
            scores[row, list(data.iid_map)] = model.score(0, history)[: len(data.iid_map)]
        return scores

    return score


MODELS = {"neumf": train_neumf, "gru4rec": train_gru4rec}


def top(arrays: Any, score: Scorer, known: str) -> Any:
    """Returns the best items of each test user, without those that are known."""
    had = np.zeros(tuple(arrays["shape"]), bool)
    had[arrays[f"{known}_user"], arrays[f"{known}_item"]] = True
    scores = np.where(had[arrays["test_user"]], -np.inf, score(known))
    return np.argsort(-scores, axis=1, kind="stable")[:, :K]


def ndcg(arrays: Any, lists: Any) -> float:
    """Returns the mean NDCG@10 of ``lists`` on validation."""
    wanted = np.zeros(tuple(arrays["shape"]), bool)
    wanted[arrays["validation_user"], arrays["validation_item"]] = True
    wanted = wanted[arrays["test_user"]]
    discounts = 1 / np.log2(np.arange(K) + 2)
    ideal = np.concatenate([[np.inf], np.cumsum(discounts)])[np.minimum(wanted.sum(1), K)]
    return float((np.take_along_axis(wanted, lists, 1) @ discounts / ideal).mean())


def main() -> None:
    """Runs one model with one seed."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    torch.set_num_threads(1)
    with np.load(settings["arrays"]) as file:
        arrays = {name: file[name] for name in file}
    best, lists = -1.0, np.empty((0, K), np.int64)
    for options in settings["grid"]:
        score = MODELS[settings["model"]](arrays, settings["seed"], options)
        value = ndcg(arrays, top(arrays, score, "train"))
        print(f"cornac {settings['model']} {options} validation NDCG@10 {value:.4f}", flush=True)
        if value > best:
            best, lists = value, top(arrays, score, "known")
    np.savez(settings["output"], lists=lists, best=best)


if __name__ == "__main__":
    main()
