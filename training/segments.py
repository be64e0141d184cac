"""Popularity by segment: what the users of one country, age or hour take, smoothed by what all take."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recserve.errors import InvalidRequest
from recserve.training.data import Dataset, Histories
from recserve.training.data.columns import USER_ID
from recserve.training.ranking.space import MOMENTS, Bins, Category, fit_user_feature, moments, user_indices

# Interactions of all users that are added to those of a segment, so that a small one does not follow chance.
PRIOR_INTERACTIONS = 1000
# A list of fewer users would say what single ones took.
MIN_USERS = 20
MAX_VALUES = 200
# Items that are kept of a segment; those of everybody follow.
MAX_LENGTH = 1000
AUTO = ("auto",)


@dataclass(frozen=True, slots=True, eq=False)
class SegmentTables:
    """items int32 and shares float32, (n_segments, length): a row per value of each feature, in their order.

    ``features``: of users, and names of :data:`MOMENTS`. Rows end in −1 and 0; one of too few users has
    nothing else.
    """

    features: tuple[Category | Bins | str, ...]
    items: NDArray[np.int32]
    shares: NDArray[np.float32]

    def rows_of(self, users: pl.DataFrame) -> NDArray[np.bool_]:
        """Returns which segments of attributes each of ``users`` is in, (n_users, n_segments) bool."""
        found = np.zeros((users.height, len(self.items)), np.bool_)
        start = 0
        for feature in self.features:
            if isinstance(feature, str):
                start += MOMENTS[feature]
                continue
            index = user_indices(feature, users[feature.name])
            known = np.flatnonzero(index)
            found[known, start + index[known] - 1] = True
            start += feature.n - 1
        enough: NDArray[np.bool_] = self.items[:, 0] >= 0
        return found & enough

    def dense(self, popularity: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the share of every item in each segment, (n_segments, n_items).

        ``popularity``: interactions of each item, (n_items,): an item beyond a list has its share of all of
        them, at most the list's last.
        """
        of_all = popularity / max(1, popularity.sum())
        shares: NDArray[np.float32] = np.minimum(of_all, self.shares[:, -1:]).astype(np.float32)
        np.put_along_axis(shares, np.maximum(self.items, 0), self.shares, axis=1)
        return shares


def fit_segments(dataset: Dataset, train: Histories, names: Sequence[str] = AUTO) -> SegmentTables | None:
    """Counts the interactions of ``train`` (row = user) by segment; None where users cannot be told apart.

    ``names``: attributes of users, "hour", "weekday"; :data:`AUTO`: every attribute of users with at most
    200 values. Raises :class:`InvalidRequest` for an attribute that the data does not have or cannot be used.
    """
    seen = train.lengths > 0
    offered = {
        column.name: feature
        for column in dataset.users.drop(USER_ID)
        if (feature := fit_user_feature(column, seen)) is not None and feature.n - 1 <= MAX_VALUES
    }
    wanted = list(offered) if tuple(names) == AUTO else names
    features: list[Category | Bins | str] = []
    for name in wanted:
        if name not in offered and name not in MOMENTS:
            expected = ", ".join([*offered, *MOMENTS])
            raise InvalidRequest("segments", found=name, expected=f"of {expected}")
        features.append(offered.get(name, name))
    if not features:
        return None
    counts = np.bincount(train.item_index, minlength=dataset.n_items)
    length = min(MAX_LENGTH, dataset.n_items)
    user = np.repeat(np.arange(len(train)), train.lengths)
    tables = [
        _table(indices, n, train.item_index, user, counts, length)
        for indices, n in (_segments(feature, dataset.users, train, user) for feature in features)
    ]
    return SegmentTables(
        tuple(features),
        np.concatenate([items for items, _ in tables]),
        np.concatenate([shares for _, shares in tables]),
    )


def _segments(
    feature: Category | Bins | str, users: pl.DataFrame, train: Histories, user: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int]:
    """Returns the index of the segment of each interaction, 0 for none, and how many segments there are."""
    if isinstance(feature, str):
        return moments((feature,), train.timestamp)[:, 0], MOMENTS[feature]
    return user_indices(feature, users[feature.name])[user], feature.n - 1


def _table(
    segment: NDArray[np.int64],
    n_segments: int,
    item: NDArray[np.int32],
    user: NDArray[np.int64],
    counts: NDArray[np.int64],
    length: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Returns the best items of each segment and their shares, (n_segments, length); counts: of everybody."""
    items = np.full((n_segments, length), -1, np.int32)
    shares = np.zeros((n_segments, length), np.float32)
    prior = PRIOR_INTERACTIONS * counts / max(1, counts.sum())
    for row in range(n_segments):
        chosen = segment == row + 1
        if len(np.unique(user[chosen])) < MIN_USERS:
            continue
        smoothed = np.bincount(item[chosen], minlength=len(counts)) + prior
        items[row] = np.argsort(-smoothed, kind="stable")[:length]
        shares[row] = smoothed[items[row]] / smoothed.sum()
    return items, shares
