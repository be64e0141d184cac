"""What users did before the bundle was written: the warm start of the online state, memory-mapped."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recserve.engine.bundle.vocabulary import Vocabulary
from recserve.errors import BundleInvalid, BundleReason


class History(NamedTuple):
    """One user's interactions, newest last: ``items`` (n,) int32, ``timestamps`` (n,) int64 seconds.

    ``user_row``: the row of the bundle's user tables that stands for exactly this history; −1 where there is
    none, as for a history that a request brought or that grew since. ``key``: what stands in memory for the
    user who is remembered by it; None for a history that a request brought.
    """

    items: NDArray[np.int32]
    timestamps: NDArray[np.int64]
    user_row: int = -1
    key: Hashable = None


# The columns of the Arrow file.
HISTORY_COLUMNS = {
    "user_id": pa.large_string(),
    "items": pa.large_list(pa.int32()),
    "timestamps": pa.large_list(pa.int64()),
}
EMPTY_HISTORY = History(np.empty(0, np.int32), np.empty(0, np.int64))


class StoredHistories:
    """The histories of a bundle by user id; read-only, safe to share between threads."""

    def __init__(self, table: pa.Table, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        items = table.column("items").combine_chunks()
        self._offsets = items.offsets.to_numpy()
        self._items = items.values.to_numpy()
        timestamps = table.column("timestamps").combine_chunks()
        self._timestamp_offsets = timestamps.offsets.to_numpy()
        self._timestamps = timestamps.values.to_numpy()

    def __len__(self) -> int:
        return len(self.vocabulary)

    def check(self, name: str, n_items: int) -> None:
        """Raises :class:`BundleInvalid` for file ``name`` unless every item is one of the catalogue."""
        if not np.array_equal(self._offsets, self._timestamp_offsets):
            raise BundleInvalid(
                f"column timestamps of {name}",
                found="of other lengths",
                expected="one for each of items",
                reason=BundleReason.SHAPE,
            )
        if len(self._items) and not 0 <= self._items.min() <= self._items.max() < n_items:
            raise BundleInvalid(
                f"column items of {name}",
                found=f"from {self._items.min()} to {self._items.max()}",
                expected=f"0 to {n_items - 1}",
                reason=BundleReason.VALUE_RANGE,
            )

    def get(self, user_id: str) -> History:
        """Returns the history of ``user_id``; an unknown user has an empty one."""
        return self._of_row(self.vocabulary.index_of(user_id) if user_id else -1)

    def get_many(self, user_ids: Sequence[str]) -> list[History]:
        """Returns the history of each user, in one lookup."""
        if len(user_ids) == 1:
            return [self.get(user_ids[0])]
        rows = self.vocabulary.indices(user_ids)
        if not len(self):
            return [EMPTY_HISTORY] * len(rows)
        # Of all at once; what the unknown ones (−1) find is not looked at.
        starts, ends = self._offsets[rows].tolist(), self._offsets[rows + 1].tolist()
        return [
            EMPTY_HISTORY if row < 0 else History(self._items[start:end], self._timestamps[start:end], row)
            for row, start, end in zip(rows.tolist(), starts, ends, strict=True)
        ]

    def _of_row(self, row: int) -> History:
        if row < 0:
            return EMPTY_HISTORY
        start, end = self._offsets[row], self._offsets[row + 1]
        return History(self._items[start:end], self._timestamps[start:end], row)


def histories_table(
    user_ids: list[str], indptr: NDArray[np.int64], items: NDArray[np.int32], timestamps: NDArray[np.int64]
) -> pa.Table:
    """Returns the Arrow table that :class:`StoredHistories` reads, from CSR arrays (row = user)."""
    return pa.table(
        {
            "user_id": pa.array(user_ids, pa.large_string()),
            "items": pa.LargeListArray.from_arrays(pa.array(indptr, pa.int64()), pa.array(items, pa.int32())),
            "timestamps": pa.LargeListArray.from_arrays(
                pa.array(indptr, pa.int64()), pa.array(timestamps, pa.int64())
            ),
        }
    )
