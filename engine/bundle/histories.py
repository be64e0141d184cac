"""What users did before the bundle was written: the warm start of the online state, memory-mapped."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recserve.engine.bundle.vocabulary import Vocabulary
from recserve.errors import BundleInvalid, BundleReason, InvalidRequest


class History(NamedTuple):
    """One user's interactions, newest last: ``items`` (n,) int32, ``timestamps`` (n,) int64 seconds.

    ``values``: (n,) float32, what the items were rated, NaN where that is not known; None: of none.

    ``user_row``: the row of the bundle's user tables that stands for exactly this history; −1 where there is
    none, as for a history that a request brought or that grew since. ``key``: what stands in memory for the
    user who is remembered by it; None for a history that a request brought.
    """

    items: NDArray[np.int32]
    timestamps: NDArray[np.int64]
    user_row: int = -1
    key: Hashable = None
    values: NDArray[np.float32] | None = None

    def rated(self) -> NDArray[np.float32]:
        """Returns ``values``, NaN for all where there are none."""
        return np.full(len(self.items), np.nan, np.float32) if self.values is None else self.values

    def where(self, kept: NDArray[np.bool_]) -> "History":
        """Returns what ``kept`` (n,) marks; no row of a table stands for it any more."""
        values = None if self.values is None else self.values[kept]
        return History(self.items[kept], self.timestamps[kept], key=self.key, values=values)


# The columns of the Arrow file; the last one is there where the data has ratings.
VALUES_COLUMN = "values"
# What float32 holds.
MAX_VALUE = 3e38


def check_value(name: str, value: float) -> None:
    """Raises :class:`InvalidRequest` unless ``value`` is what an item may be rated, or NaN for not known."""
    is_number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    if not is_number or abs(value) > MAX_VALUE:
        raise InvalidRequest(name, found=value, expected="a finite number, or NaN")


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
        self._values = self._value_offsets = None
        if VALUES_COLUMN in table.column_names:
            values = table.column(VALUES_COLUMN).combine_chunks()
            self._value_offsets = values.offsets.to_numpy()
            self._values = values.values.to_numpy()

    def __len__(self) -> int:
        return len(self.vocabulary)

    def check(self, name: str, n_items: int) -> None:
        """Raises :class:`BundleInvalid` for file ``name`` unless every item is one of the catalogue."""
        for column, offsets in (
            ("timestamps", self._timestamp_offsets),
            (VALUES_COLUMN, self._value_offsets),
        ):
            if offsets is not None and not np.array_equal(self._offsets, offsets):
                raise BundleInvalid(
                    f"column {column} of {name}",
                    found="of other lengths",
                    expected="one for each of items",
                    reason=BundleReason.SHAPE,
                )
        if self._values is not None and np.isinf(self._values).any():
            raise BundleInvalid(
                f"column {VALUES_COLUMN} of {name}",
                found="not finite",
                expected="numbers, or NaN where none is known",
                reason=BundleReason.VALUE_RANGE,
            )
        if len(self._items) and not 0 <= self._items.min() <= self._items.max() < n_items:
            raise BundleInvalid(
                f"column items of {name}",
                found=f"from {self._items.min()} to {self._items.max()}",
                expected=f"0 to {n_items - 1}",
                reason=BundleReason.VALUE_RANGE,
            )

    def get(self, user_id: str, key: Hashable = None) -> History:
        """Returns the history of ``user_id``, with that ``key``; an unknown user has an empty one."""
        row = self.vocabulary.index_of(user_id) if user_id else -1
        if row < 0:
            return EMPTY_HISTORY._replace(key=key)
        return self._between(row, self._offsets[row], self._offsets[row + 1], key)

    def get_many(self, user_ids: Sequence[str], keys: Sequence[Hashable] | None = None) -> list[History]:
        """Returns the history of each user, with their keys if given, in one lookup."""
        keys = [None] * len(user_ids) if keys is None else keys
        if len(user_ids) == 1 or not len(self):
            return [self.get(*pair) for pair in zip(user_ids, keys, strict=True)]
        rows = self.vocabulary.indices(user_ids)
        # Of all at once; what the unknown ones (−1) find is not looked at.
        starts, ends = self._offsets[rows].tolist(), self._offsets[rows + 1].tolist()
        return [
            EMPTY_HISTORY._replace(key=key) if row < 0 else self._between(row, start, end, key)
            for row, start, end, key in zip(rows.tolist(), starts, ends, keys, strict=True)
        ]

    def _between(self, row: int, start: int, end: int, key: Hashable) -> History:
        values = None if self._values is None else self._values[start:end]
        return History(self._items[start:end], self._timestamps[start:end], row, key, values)


def histories_table(
    user_ids: list[str],
    indptr: NDArray[np.int64],
    items: NDArray[np.int32],
    timestamps: NDArray[np.int64],
    values: NDArray[np.float32] | None = None,
) -> pa.Table:
    """Returns the Arrow table that :class:`StoredHistories` reads, from CSR arrays (row = user)."""
    lists = {"items": pa.array(items, pa.int32()), "timestamps": pa.array(timestamps, pa.int64())}
    if values is not None:
        lists[VALUES_COLUMN] = pa.array(values, pa.float32())
    starts = pa.array(indptr, pa.int64())
    columns = {name: pa.LargeListArray.from_arrays(starts, flat) for name, flat in lists.items()}
    return pa.table({"user_id": pa.array(user_ids, pa.large_string()), **columns})
