"""ALS: matrix factorisation of implicit feedback by alternating least squares.

Hu, Koren & Volinsky 2008 (doi:10.1109/ICDM.2008.22): every item that a user has not seen counts as a zero of
small confidence, and each side is a least-squares problem while the other is fixed. An epoch takes a few
steps of conjugate gradients towards both solutions; a fold-in solves exactly. The regularisation grows with a
user's or item's total confidence (Rendle et al. 2022, arXiv:2110.14037), without which popular items are
regularised too little and rare ones too much.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recserve.errors import InvalidRequest
from recserve.kernels import als_step, count_repeats
from recserve.training.data import Histories
from recserve.training.models.base import EPOCH_OPTIONS, Family
from recserve.training.models.interactions import Lists, n_threads, transposed
from recserve.training.models.tables import FoldInSettings, TableModel

# Rows that one task solves: enough of them for the threads to end together, each long enough to pay.
TASKS_PER_THREAD = 4


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The interactions of one side: each pair once, its weight, and the ``reg`` of the kernel."""

    lists: Lists
    weights: NDArray[np.float32]
    reg: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ALSConfig:
    """The settings of ALS."""

    embedding_size: int = 64
    weight: float = 5.0
    """Confidence of one interaction above that of an item never seen."""
    reg: float = 0.1
    """Regularisation of an average row, as a share of the weight of its interactions. Seen in that measure,
    what is best hardly depends on the size and the density of the data."""
    reg_exponent: float = 1.0
    """How regularisation grows with a row's total confidence: 0 not at all, 1 in proportion."""

    def __post_init__(self) -> None:
        if not 1 <= self.embedding_size <= 1024:
            raise InvalidRequest("embedding_size", found=self.embedding_size, expected="1 to 1024")
        for name in ("weight", "reg"):
            if not 0 < getattr(self, name) < np.inf:
                raise InvalidRequest(name, found=getattr(self, name), expected="a number above 0")
        if not 0 <= self.reg_exponent <= 1:
            raise InvalidRequest("reg_exponent", found=self.reg_exponent, expected="0 to 1")


class ALS(TableModel):
    """The tables of ALS."""

    user_reg: Tensor

    def __init__(self, config: ALSConfig, n_users: int, n_items: int) -> None:
        size = config.embedding_size
        super().__init__(np.zeros((n_users, size), np.float32), np.zeros((n_items, size), np.float32))
        self.config = config
        # λ of the kernel on the users' side, which a fold-in needs to know: it depends on the data.
        self.register_buffer("user_reg", torch.ones((), dtype=torch.float64))
        self._sides: tuple[Side, Side] | None = None

    @property
    def fold_in_settings(self) -> FoldInSettings:
        """The step of training itself."""
        return FoldInSettings(self.config.weight, float(self.user_reg), self.config.reg_exponent)

    def queries(self, users: NDArray[np.int32], histories: Histories) -> NDArray[np.float32]:
        """Folds every history in: the user table of training knows nothing of what came after."""
        return self.fold(histories)

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Improves the users, then the items; returns the loss between the two per interaction."""
        by_user, by_item = self._both_sides(train)
        users, items = self.user_embeddings.numpy(), self.item_embeddings.numpy()
        if epoch == 1:
            scale = 0.1 / np.sqrt(items.shape[1])
            items[:] = np.random.default_rng(seed).normal(0, scale, items.shape)
            self.user_reg.fill_(by_user.reg)
        _improve(users, items, by_user, self.config.reg_exponent)
        loss = _improve(items, users, by_item, self.config.reg_exponent)
        return loss / max(1, len(by_user.weights))

    def _both_sides(self, train: Histories) -> tuple[Side, Side]:
        if self._sides is None:
            by_user, counts = count_repeats((train.indptr, train.item_index))
            by_item, order = transposed(by_user, self.n_items)
            weights = counts * np.float32(self.config.weight)
            self._sides = (
                Side(by_user, weights, self._absolute_reg(by_user, weights, self.n_items)),
                Side(by_item, weights[order], self._absolute_reg(by_item, weights[order], len(train))),
            )
        return self._sides

    def _absolute_reg(self, lists: Lists, weights: NDArray[np.float32], n_others: int) -> float:
        """Returns the ``reg`` of the kernel for one side; empty rows are no part of the mean."""
        sums = np.diff(np.concatenate([[0], np.cumsum(weights, dtype=np.float64)])[lists[0]])
        sums = sums[sums > 0]
        mean_growth = ((n_others + sums) ** self.config.reg_exponent).mean()
        return float(self.config.reg * sums.mean() / mean_growth)


def _improve(
    table: NDArray[np.float32], fixed: NDArray[np.float32], side: Side, reg_exponent: float
) -> float:
    """Takes ``table`` (n, d) closer to its solution for ``fixed``, in place; returns the loss before."""
    indptr, others = side.lists
    # In float32, as the steps themselves: they start anew from its errors in the next epoch.
    gram = (fixed.T @ fixed).astype(np.float64)

    def improve(part: slice) -> float:
        start, stop = indptr[part.start], indptr[part.stop]
        return als_step(
            table[part],
            fixed,
            (indptr[part.start : part.stop + 1] - start, others[start:stop]),
            side.weights[start:stop],
            side.reg,
            reg_exponent=reg_exponent,
            gram=gram,
        )

    with ThreadPoolExecutor(n_threads()) as pool:
        return sum(pool.map(improve, _parts(indptr, TASKS_PER_THREAD * n_threads())))


def _parts(indptr: NDArray[np.int64], n_parts: int) -> list[slice]:
    """Returns slices of rows with about as many interactions each."""
    bounds = np.searchsorted(indptr, np.linspace(0, indptr[-1], n_parts + 1)[1:-1])
    bounds = np.unique(np.concatenate([[0], bounds, [len(indptr) - 1]]))
    return [slice(a, b) for a, b in itertools.pairwise(bounds.tolist())]


FAMILY = Family(
    settings=ALSConfig,
    create=ALS,
    budget={"epochs": 15, "validate_every": 1, "patience": 5},
    loop_options=EPOCH_OPTIONS,
)
