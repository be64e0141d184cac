"""What users did before the bundle was written: the warm start of the online state, memory-mapped."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recserve.engine.bundle.vocabulary import Vocabulary


class History(NamedTuple):
    """One user's interactions, newest last: ``items`` (n,) int32, ``timestamps`` (n,) int64 seconds."""

    items: NDArray[np.int32]
    timestamps: NDArray[np.int64]


EMPTY_HISTORY = History(np.empty(0, np.int32), np.empty(0, np.int64))


class StoredHistories:
    """The histories of a bundle by user id; read-only, safe to share between threads."""

    def __init__(self, table: pa.Table, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        items = table.column("items").combine_chunks()
        self._offsets = items.offsets.to_numpy()
        self._items = items.values.to_numpy()
        self._timestamps = table.column("timestamps").combine_chunks().values.to_numpy()

    def __len__(self) -> int:
        return len(self.vocabulary)

    def get(self, user_id: str) -> History:
        """Returns the history of ``user_id``; an unknown user has an empty one."""
        row = self.vocabulary.index_of(user_id) if user_id else -1
        if row < 0:
            return EMPTY_HISTORY
        start, end = self._offsets[row], self._offsets[row + 1]
        return History(self._items[start:end], self._timestamps[start:end])


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
