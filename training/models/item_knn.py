"""ItemKNN: an item is scored by how like the items of the history it is (Sarwar et al. 2001,
doi:10.1145/371920.372071).

The likeness is the cosine of the items' users, damped where few users stand behind it:
c_ij / (√(c_i c_j) + shrinkage); each item keeps its nearest neighbours only.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recserve.errors import InvalidRequest
from recserve.kernels import co_occurrences, count_repeats
from recserve.training.data import EvaluationSet, Histories
from recserve.training.models.base import ONE_EPOCH, Family, FittedModel
from recserve.training.models.interactions import n_threads, transposed

# Rows of the dense counts that one task holds at a time.
MAX_COUNTS_PER_TASK = 16_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemKNNConfig:
    """The settings of ItemKNN."""

    neighbours: int = 200
    shrinkage: float = 10.0

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise InvalidRequest("neighbours", found=self.neighbours, expected="1 or more")
        if not 0 <= self.shrinkage < np.inf:
            raise InvalidRequest("shrinkage", found=self.shrinkage, expected="a number of at least 0")


class ItemKNN(FittedModel):
    """The nearest items of each item, (n_items, k) int32, and how like they are, float32, 0 where none is."""

    nearest: Tensor
    likeness: Tensor

    def __init__(self, config: ItemKNNConfig, n_users: int, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.n_items = n_items
        k = max(1, min(config.neighbours, n_items - 1))
        self.register_buffer("nearest", torch.zeros(n_items, k, dtype=torch.int32))
        self.register_buffer("likeness", torch.zeros(n_items, k))

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Finds the neighbours; there is no loss to speak of."""
        by_user, _ = count_repeats((train.indptr, train.item_index))
        by_item, _ = transposed(by_user, self.n_items)
        n_users = np.diff(by_item[0]).astype(np.float32)
        step = max(1, MAX_COUNTS_PER_TASK // self.n_items)

        def fill(first: int) -> None:
            last = min(first + step, self.n_items)
            counts = co_occurrences(by_user, by_item, first, last)
            norms = np.sqrt(n_users[first:last, None] * n_users) + np.float32(self.config.shrinkage)
            counts /= np.maximum(norms, np.finfo(np.float32).tiny)
            counts[np.arange(last - first), np.arange(first, last)] = -1
            self._keep_nearest(first, counts)

        with ThreadPoolExecutor(n_threads()) as pool:
            list(pool.map(fill, range(0, self.n_items, step)))
        return 0.0

    def _keep_nearest(self, first: int, likeness: NDArray[np.float32]) -> None:
        """``likeness``: (n, n_items) of the items from ``first`` on, −1 with themselves."""
        k = self.nearest.shape[1]
        rows = slice(first, first + len(likeness))
        order = np.argpartition(-likeness, k - 1, axis=1)[:, :k].astype(np.int32)
        self.nearest.numpy()[rows] = order
        self.likeness.numpy()[rows] = np.maximum(np.take_along_axis(likeness, order, axis=1), 0)

    def score_rows(self, held_out: EvaluationSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the scores (len(rows), n_items) of users whose history is that of ``held_out``."""
        scores = np.empty((len(rows), self.n_items), np.float32)
        nearest, likeness = self.nearest.numpy(), self.likeness.numpy()
        for row, out in zip(rows.tolist(), scores, strict=True):
            items = np.unique(held_out.histories.row(row)[0])
            out[:] = np.bincount(
                nearest[items].ravel(), weights=likeness[items].ravel(), minlength=self.n_items
            )
        return scores


FAMILY = Family(settings=ItemKNNConfig, create=ItemKNN, budget=ONE_EPOCH, loop_options=frozenset({"seed"}))
