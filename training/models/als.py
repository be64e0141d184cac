"""ALS: matrix factorisation of implicit feedback by alternating least squares.

Hu, Koren & Volinsky 2008 (doi:10.1109/ICDM.2008.22): every item that a user has not seen counts as a zero of
small confidence, and each side is solved exactly while the other is fixed. The regularisation grows with a
user's or item's total confidence (Rendle et al. 2022, arXiv:2110.14037), without which popular items are
regularised too little and rare ones too much.
"""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.errors import InvalidRequest
from recserve.kernels import count_repeats, fold_in, gram_matrix
from recserve.training.data import Histories
from recserve.training.models.base import EPOCH_OPTIONS, Family
from recserve.training.models.tables import FoldInSettings, TableModel

# Rows that one task solves: enough of them for the threads to end together, each long enough to pay.
TASKS_PER_THREAD = 8
# Bounds the scores of one step of the loss.
INTERACTIONS_PER_STEP = 1 << 18

Interactions = tuple[tuple[NDArray[np.int64], NDArray[np.int32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ALSConfig:
    """The settings of ALS."""

    embedding_size: int = 64
    weight: float = 5.0
    """Confidence of one interaction above that of an item never seen."""
    reg: float = 0.01
    """Regularisation; multiplied by the total confidence to the power of reg_exponent."""
    reg_exponent: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.embedding_size <= 1024:
            raise InvalidRequest("embedding_size", found=self.embedding_size, expected="1 to 1024")
        for name in ("weight", "reg"):
            if not 0 < getattr(self, name) < np.inf:
                raise InvalidRequest(name, found=getattr(self, name), expected="a number above 0")
        if not 0 <= self.reg_exponent <= 1:
            raise InvalidRequest("reg_exponent", found=self.reg_exponent, expected="0 to 1")


class ALS(TableModel):
    """The tables of ALS; those of the users are always the exact solution for the items' as they are."""

    user_table_is_folded = True

    def __init__(self, config: ALSConfig, n_users: int, n_items: int) -> None:
        size = config.embedding_size
        super().__init__(np.zeros((n_users, size), np.float32), np.zeros((n_items, size), np.float32))
        self.config = config
        self._interactions: tuple[Interactions, Interactions] | None = None

    @property
    def fold_in_settings(self) -> FoldInSettings:
        """The step of training itself."""
        return FoldInSettings(self.config.weight, self.config.reg, self.config.reg_exponent)

    def queries(self, users: NDArray[np.int32], histories: Histories) -> NDArray[np.float32]:
        """Folds every history in: the user table of training knows nothing of what came after."""
        return self.fold(histories)

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Solves the users, then the items; returns the weighted squared error per interaction."""
        by_user, by_item = self._both_ways(train)
        users, items = self.user_embeddings.numpy(), self.item_embeddings.numpy()
        if epoch == 1:
            scale = 0.1 / np.sqrt(items.shape[1])
            items[:] = np.random.default_rng(seed).normal(0, scale, items.shape)
        users[:] = self._solve(items, by_user)
        items[:] = self._solve(users, by_item)
        return self._loss(by_user)

    def _both_ways(self, train: Histories) -> tuple[Interactions, Interactions]:
        if self._interactions is None:
            by_user = count_repeats((train.indptr, train.item_index))
            self._interactions = by_user, _transposed(by_user, self.n_items)
        return self._interactions

    def _solve(self, fixed: NDArray[np.float32], interactions: Interactions) -> NDArray[np.float32]:
        """Returns the rows (n, d) of one side, given the vectors of the other."""
        (indptr, others), counts = interactions
        weights = counts * np.float32(self.config.weight)
        gram = gram_matrix(fixed)

        def solve(part: slice) -> NDArray[np.float32]:
            start, stop = indptr[part.start], indptr[part.stop]
            return fold_in(
                fixed,
                (indptr[part.start : part.stop + 1] - start, others[start:stop]),
                weights[start:stop],
                self.config.reg,
                reg_exponent=self.config.reg_exponent,
                gram=gram,
            )

        with ThreadPoolExecutor(n_threads()) as pool:
            return np.concatenate(list(pool.map(solve, _parts(indptr, TASKS_PER_THREAD * n_threads()))))

    def _loss(self, by_user: Interactions) -> float:
        """Returns Σ (1 + w)(1 − s)² of the interactions + Σ s² of all other pairs, per interaction."""
        (indptr, items), counts = by_user
        user_table, item_table = self.user_embeddings.numpy(), self.item_embeddings.numpy()
        users = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        # Σ s² of all pairs, without looking at each.
        total = float(np.vdot(gram_matrix(user_table), gram_matrix(item_table)))
        for start in range(0, len(items), INTERACTIONS_PER_STEP):
            part = slice(start, start + INTERACTIONS_PER_STEP)
            scores = np.einsum("nd,nd->n", user_table[users[part]], item_table[items[part]])
            confidence = 1 + self.config.weight * counts[part]
            total += float((confidence * (1 - scores) ** 2 - scores**2).sum())
        return total / max(1, len(items))


def n_threads() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parts(indptr: NDArray[np.int64], n_parts: int) -> list[slice]:
    """Returns slices of rows with about as many interactions each."""
    bounds = np.searchsorted(indptr, np.linspace(0, indptr[-1], n_parts + 1)[1:-1])
    bounds = np.unique(np.concatenate([[0], bounds, [len(indptr) - 1]]))
    return [slice(a, b) for a, b in itertools.pairwise(bounds.tolist())]


def _transposed(by_row: Interactions, n_columns: int) -> Interactions:
    """Returns the interactions grouped by column, rows ascending."""
    (indptr, columns), counts = by_row
    rows = np.repeat(np.arange(len(indptr) - 1, dtype=np.int32), np.diff(indptr))
    order = np.argsort(columns, kind="stable")
    column_indptr = np.zeros(n_columns + 1, np.int64)
    np.cumsum(np.bincount(columns, minlength=n_columns), out=column_indptr[1:])
    return (column_indptr, rows[order]), counts[order]


FAMILY = Family(
    settings=ALSConfig,
    create=ALS,
    budget={"epochs": 15, "validate_every": 1, "patience": 5},
    loop_options=EPOCH_OPTIONS,
)
