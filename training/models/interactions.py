"""Interactions grouped by user or by item, and the threads that work on them."""

import os

import numpy as np
from numpy.typing import NDArray

Lists = tuple[NDArray[np.int64], NDArray[np.int32]]


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
