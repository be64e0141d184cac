"""Histories of many users in one compressed sparse row (CSR) structure."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from recserve.training.data.mapped import empty

GATHERED_AT_ONCE = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Histories:
    """What each user did, oldest first: row i is ``indptr[i]:indptr[i + 1]`` of the flat arrays.

    indptr: (n_rows + 1,) int64; item_index: (n,) int32; timestamp: (n,) int64, seconds, never decreasing
    within a row, ties in the order of the source; value: (n,) float32, the rating or quantity, 1 where the
    source has none.
    """

    indptr: npt.NDArray[np.int64]
    item_index: npt.NDArray[np.int32]
    timestamp: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]

    @classmethod
    def from_sorted(
        cls,
        row: npt.NDArray[np.integer],
        item_index: npt.NDArray[np.int32],
        timestamp: npt.NDArray[np.int64],
        n_rows: int,
        value: npt.NDArray[np.float32] | None = None,
    ) -> "Histories":
        """Builds from parallel arrays already sorted by ``row`` and then time; rows may be empty."""
        indptr = np.zeros(n_rows + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=n_rows), out=indptr[1:])
        return cls(
            indptr,
            item_index.astype(np.int32, copy=False),
            timestamp.astype(np.int64, copy=False),
            np.ones(len(item_index), np.float32) if value is None else value.astype(np.float32, copy=False),
        )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.indptr) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of interactions of each row, (n_rows,) int64."""
        return np.diff(self.indptr)

    def row(self, i: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Returns views of (item_index, timestamp) of row ``i``."""
        interactions = slice(self.indptr[i], self.indptr[i + 1])
        return self.item_index[interactions], self.timestamp[interactions]

    def last(self, n: int) -> "Histories":
        """Returns each row cut to its newest ``n`` interactions."""
        return self.gather(np.maximum(self.indptr[1:] - n, self.indptr[:-1]), self.indptr[1:])

    def take(self, rows: npt.NDArray[np.integer]) -> "Histories":
        """Returns the rows ``rows``, in their order."""
        return self.gather(self.indptr[rows], self.indptr[rows + 1])

    def gather(self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]) -> "Histories":
        """Returns new rows, row i being the flat range ``starts[i]:stops[i]`` of this one.

        Large ones lie in files, see :func:`~recserve.training.data.mapped.empty`.
        """
        lengths = stops - starts
        indptr = np.zeros(len(starts) + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        arrays: tuple[npt.NDArray[Any], ...] = (self.item_index, self.timestamp, self.value)
        found = [empty(int(indptr[-1]), array.dtype) for array in arrays]
        # Some rows at a time: their places in the flat arrays are twice as large as what is there.
        steps = np.searchsorted(indptr, np.arange(0, indptr[-1], GATHERED_AT_ONCE))
        for first, last in pairwise(np.unique([*steps, len(starts)]).tolist()):
            place = slice(indptr[first], indptr[last])
            flat = np.repeat(starts[first:last] - indptr[first:last], lengths[first:last])
            flat += np.arange(indptr[first], indptr[last])
            for array, target in zip(arrays, found, strict=True):
                target[place] = array[flat]
        return Histories(indptr, *found)
