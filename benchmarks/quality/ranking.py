"""Full ranking: the best ten of all items but those known, for every tested user."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.benchmarks.quality.protocol import Ask, Protocol, Rows, Values, arrays_of, train
from recserve.training import metrics
from recserve.training.data import Dataset, Histories, Split, leave_one_out, random_split
from recserve.training.evaluate import model_lister, steps
from recserve.training.loop import popularity_of

K = 10
Lists = NDArray[np.int64]


class Ranking(Protocol):
    """Lists of K items; peers get no test item. Of items with the same score the lower index comes first."""

    metrics = (f"HR@{K}", f"NDCG@{K}")

    def __init__(self, dataset: Dataset, split: Split, split_name: str) -> None:
        self._dataset, self._split, self._name = dataset, split, split_name
        self.owner = split.test.user_index.astype(np.int64)

    def ours(self, model: str, settings: Mapping[str, Any], seed: int) -> Values:
        trained = train(model, self._name, self._dataset, self._split, seed, settings)
        test, n_items = self._split.test, self._dataset.n_items
        lister = model_lister(trained, test, popularity_of(self._split, n_items), K)
        lists = [lister(rows)[1] for rows in steps(len(test.user_index))]
        return self._values(np.concatenate(lists).astype(np.int64))

    def theirs(self, ask: Ask) -> Values:
        return self._values(ask(arrays_of(self._dataset, self._split))["lists"].astype(np.int64))

    def figures(self, values: Values, rows: Rows) -> dict[str, float]:
        return {name: float(values[name][rows].mean()) for name in self.metrics}

    def _values(self, lists: Lists) -> Values:
        ranks = ranks_in(lists, self._split.test.targets)
        return {f"HR@{K}": metrics.hit_rate(ranks, K), f"NDCG@{K}": metrics.ndcg(ranks, K)}


def of_leave_one_out(dataset: Dataset, seed: int) -> Ranking:
    """The newest interaction of each user is tested; the same split for every seed."""
    del seed
    return Ranking(dataset, leave_one_out(dataset), "leave-one-out")


def of_random_split(dataset: Dataset, seed: int) -> Ranking:
    """A tenth of each user's interactions is tested, drawn by ``seed``."""
    return Ranking(dataset, random_split(dataset, seed), "random")


def ranks_in(lists: Lists, targets: Histories) -> list[NDArray[np.float64]]:
    """Returns the 1-based place of each distinct target in its user's list, infinity where it is not."""
    ranks = []
    for row, found in enumerate(lists):
        places = {item: place for place, item in enumerate(found.tolist(), start=1)}
        wanted = np.unique(targets.row(row)[0]).tolist()
        ranks.append(np.array([places.get(item, np.inf) for item in wanted], np.float64))
    return ranks
