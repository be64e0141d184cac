"""Interactions grouped by user or by item, what is drawn from them, and the threads that work on them."""

import os

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import count_repeats
from recserve.training.data import Histories

Lists = tuple[NDArray[np.int64], NDArray[np.int32]]
# users, items they had, items they did not have: (n,) int32 each.
Triples = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
MAX_REDRAWS = 10


class Pairs:
    """Who had what, each pair once, and items drawn from what somebody did not have.

    lists: the distinct items of each user · users, items: (n,) int32, the pairs in the order of ``lists``.
    """

    def __init__(self, train: Histories, n_items: int) -> None:
        self.lists, _ = count_repeats((train.indptr, train.item_index))
        indptr, self.items = self.lists
        self.users = np.repeat(np.arange(len(train), dtype=np.int32), np.diff(indptr))
        self._n_items = n_items
        self._numbers = self._number(self.users, self.items)

    def __len__(self) -> int:
        return len(self.items)

    def triples(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Triples:
        """Returns the pairs ``rows`` (n,), each with an item that the user did not have.

        A pair whose draws were all had is left out: such a user has nearly everything.
        """
        users, items = self.users[rows], self.items[rows]
        others = rng.integers(0, self._n_items, len(users), dtype=np.int32)
        for _ in range(MAX_REDRAWS):
            bad = np.flatnonzero(self._had(users, others))
            if not len(bad):
                return users, items, others
            others[bad] = rng.integers(0, self._n_items, len(bad), dtype=np.int32)
        good = ~self._had(users, others)
        return users[good], items[good], others[good]

    def _had(self, users: NDArray[np.int32], items: NDArray[np.int32]) -> NDArray[np.bool_]:
        drawn = self._number(users, items)
        place = np.minimum(np.searchsorted(self._numbers, drawn), len(self._numbers) - 1)
        had: NDArray[np.bool_] = self._numbers[place] == drawn
        return had

    def _number(self, users: NDArray[np.int32], items: NDArray[np.int32]) -> NDArray[np.int64]:
        return users.astype(np.int64) * self._n_items + items


def transposed(by_row: Lists, n_columns: int) -> tuple[Lists, NDArray[np.int64]]:
    """Returns (indptr, rows ascending) of every column, from (indptr, columns) of every row.

    Also returns the order that puts what belongs to each pair of ``by_row`` in its new place.
    """
    indptr, columns = by_row
    rows = np.repeat(np.arange(len(indptr) - 1, dtype=np.int32), np.diff(indptr))
    order = np.argsort(columns, kind="stable")
    column_indptr = np.zeros(n_columns + 1, np.int64)
    np.cumsum(np.bincount(columns, minlength=n_columns), out=column_indptr[1:])
    return (column_indptr, rows[order]), order


def n_threads() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
