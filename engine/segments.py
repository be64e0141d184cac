"""Popularity by segment: what users like this one, in a moment like this one, take."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle
from recserve.engine.bundle.segments_entry import SegmentsEntry
from recserve.engine.feature_reader import FeatureReader
from recserve.engine.fixed_ranking import FixedRanking
from recserve.engine.kept import Kept
from recserve.errors import BundleInvalid, BundleReason

MAX_KEPT_BYTES = 32 << 20
# A score and a place in the order.
BYTES_PER_ITEM = 8


class Segments:
    """The segments of one bundle; safe to call from several threads.

    Raises :class:`BundleInvalid` at construction when the lists are not what the manifest says.
    """

    def __init__(self, bundle: Bundle, entry: SegmentsEntry, popularity: FixedRanking) -> None:
        self._reader = FeatureReader(bundle, entry.features)
        n_values = [self._reader.n_values(feature) for feature in entry.features]
        shape = (sum(n_values), entry.length)
        self._starts = np.concatenate([[0], np.cumsum(n_values)[:-1]]).astype(np.int64)
        self._items = bundle.array(entry.items, np.dtype(np.int32), shape)
        self._shares = bundle.array(entry.shares, np.dtype(np.float32), shape)
        self._popularity = popularity
        n_items = len(popularity.scores)
        if self._items.size and not -1 <= self._items.min() <= self._items.max() < n_items:
            raise BundleInvalid(
                entry.items,
                found="out of range",
                expected=f"-1 to {n_items - 1}",
                reason=BundleReason.VALUE_RANGE,
            )
        if not (np.isfinite(self._shares).all() and (np.diff(self._shares) <= 0).all()):
            raise BundleInvalid(
                entry.shares,
                found="not falling",
                expected="finite and falling",
                reason=BundleReason.VALUE_RANGE,
            )
        self._kept = Kept[FixedRanking](max(4, MAX_KEPT_BYTES // (BYTES_PER_ITEM * n_items)))

    def check(self, context: Mapping[str, str]) -> None:
        """Raises :class:`InvalidRequest` for a number or an hour that is none."""
        self._reader.indices(context, 0)

    def ranking(self, context: Mapping[str, str], now: int) -> FixedRanking | None:
        """Returns the order of the catalogue in the segments of ``context``, the mean of their shares.

        None where it names no segment of enough users. ``now``: seconds since the epoch, for the hour and
        weekday that the context leaves open.
        """
        indices = self._reader.indices(context, now)
        rows = tuple(
            int(start) + index - 1
            for start, index in zip(self._starts, indices, strict=True)
            if index > 0 and self._items[start + index - 1, 0] >= 0
        )
        return self._kept.get(rows, lambda: self._mean(rows)) if rows else None

    def _mean(self, rows: tuple[int, ...]) -> FixedRanking:
        total = np.zeros_like(self._popularity.scores)
        for row in rows:
            total += self._share(row)
        return FixedRanking.of(total / np.float32(len(rows)))

    def _share(self, row: int) -> NDArray[np.float32]:
        """Returns the shares of all items (n_items,): what the list leaves out is not above its end."""
        known = self._items[row] >= 0
        items, shares = self._items[row][known], self._shares[row][known]
        of_all: NDArray[np.float32] = np.minimum(self._popularity.scores, shares[-1])
        of_all[items] = shares
        return of_all
