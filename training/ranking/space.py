"""The features of users, items and the moment: fitted on training data, numbered, ready for embeddings.

Index 0 of every categorical feature is the out-of-vocabulary bucket: a value unseen in training, or none.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recserve.training.data import Dataset, Histories, Split
from recserve.training.data.attributes import TEXTS
from recserve.training.data.columns import ITEM_ID, USER_ID
from recserve.training.ranking.normalise import Normaliser

HOUR, WEEKDAY = "hour", "weekday"
# What the moment of a request tells by itself, UTC, and how many values it has.
MOMENTS = {HOUR: 24, WEEKDAY: 7}
POPULARITY = "popularity"
# A column with a different text for nearly every row says no more than the id does.
MAX_CATEGORIES = 10_000
MIN_ROWS_PER_CATEGORY = 2.0
# Examples of the mean that an item is pulled to when it has few of its own.
PRIOR_STRENGTH = 10.0
# Values of a list feature that are kept of one item, and bins of a numeric feature of users.
MAX_LIST = 8
N_BINS = 16
SECONDS_PER_HOUR, HOURS_PER_DAY, DAYS_PER_WEEK = 3600, 24, 7
# 1970-01-01 was a Thursday; weekday 0 is Monday.
EPOCH_WEEKDAY = 3


@dataclass(frozen=True, slots=True)
class Category:
    """A feature with a value out of ``values``; value i has the index i + 1."""

    name: str
    values: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of indices, that of the unknown included."""
        return len(self.values) + 1


@dataclass(frozen=True, slots=True)
class Bins:
    """A number as one of a few ranges: index 1 + the number of ``edges`` at or below it, 0 for none."""

    name: str
    edges: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of indices, that of the unknown included."""
        return len(self.edges) + 2


@dataclass(frozen=True, slots=True)
class Number:
    """A number of an item on its fitted scale."""

    name: str
    normaliser: Normaliser


@dataclass(frozen=True, slots=True)
class Schema:
    """What the features are, without the tables: everything that a request needs to be numbered.

    ``users`` does not name the id, which stands first in the user table, before them. ``context``: names
    out of :data:`MOMENTS`.
    """

    n_users: int
    n_items: int
    users: tuple[Category | Bins, ...]
    categories: tuple[Category, ...]
    lists: tuple[Category, ...]
    numbers: tuple[Number, ...]
    context: tuple[str, ...]

    @property
    def user_sizes(self) -> list[int]:
        """Indices of each column of the user table: the id, then ``users``."""
        return [self.n_users + 1, *(feature.n for feature in self.users)]

    @property
    def context_sizes(self) -> list[int]:
        """Indices of each context feature."""
        return [MOMENTS[name] + 1 for name in self.context]

    def to_bytes(self) -> bytes:
        """Returns canonical JSON, the same for the same schema."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSpace:
    """The schema and the features of every user and item in numbers.

    user_rows: (n_users, 1 + len(users)) int64, the id first; item_ids: (n_items,) int64, index + 1, or 0
    where training has no interaction; item_categories: (n_items, len(categories)) int64; item_lists:
    (n_items, len(lists), MAX_LIST) int64, padded with 0; item_numbers: (n_items, len(numbers)) float32;
    item_values: (n_items,) float32, the :func:`item_means` of the values.
    """

    schema: Schema
    user_rows: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    item_categories: NDArray[np.int64]
    item_lists: NDArray[np.int64]
    item_numbers: NDArray[np.float32]
    item_values: NDArray[np.float32]


def fit_space(dataset: Dataset, split: Split, *, context: bool, normalisation: str) -> FeatureSpace:
    """Fits vocabularies, bins and scales on the users and items of ``split.train`` alone.

    ``context``: whether the moment of a request is a feature; ``normalisation``: of the numbers of items.
    """
    train = split.train
    user_seen = train.lengths > 0
    counts = np.bincount(train.item_index, minlength=dataset.n_items)
    item_seen = counts > 0
    users, items = dataset.users.drop(USER_ID), dataset.items.drop(ITEM_ID)
    user_features = [f for f in (fit_user_feature(column, user_seen) for column in users) if f is not None]
    categories = [f for f in (_category(column, item_seen) for column in items if _is_text(column)) if f]
    lists = [f for f in (_list_category(column, item_seen) for column in items if _is_list(column)) if f]
    # How often an item was met in training is known of every item, a new one too.
    numbers = [column for column in items if column.dtype.is_numeric()] + [pl.Series(POPULARITY, counts)]
    scales = [Number(n.name, Normaliser.fit(_floats(n)[item_seen], normalisation)) for n in numbers]
    schema = Schema(
        n_users=dataset.n_users,
        n_items=dataset.n_items,
        users=tuple(user_features),
        categories=tuple(categories),
        lists=tuple(lists),
        numbers=tuple(scales),
        context=tuple(MOMENTS) if context else (),
    )
    ids = np.where(user_seen, np.arange(1, dataset.n_users + 1), 0)
    return FeatureSpace(
        schema=schema,
        user_rows=_columns([ids, *(user_indices(f, users[f.name]) for f in user_features)], dataset.n_users),
        item_ids=np.where(item_seen, np.arange(1, dataset.n_items + 1), 0),
        item_categories=_columns([_indices(f, items[f.name]) for f in categories], dataset.n_items),
        item_lists=np.stack([_list_indices(f, items[f.name]) for f in lists], axis=1)
        if lists
        else np.zeros((dataset.n_items, 0, MAX_LIST), np.int64),
        item_numbers=np.stack(
            [s.normaliser.apply(_floats(n)) for n, s in zip(numbers, scales, strict=True)], axis=1
        ),
        item_values=item_means(train, train.value.astype(np.float64), dataset.n_items).astype(np.float32),
    )


def item_means(train: Histories, values: NDArray[np.float64], n_items: int) -> NDArray[np.float64]:
    """Returns the mean by item of ``values``, one of each training interaction, pulled to the mean of all."""
    sums = np.bincount(train.item_index, values, minlength=n_items)
    counts = np.bincount(train.item_index, minlength=n_items)
    means: NDArray[np.float64] = (sums + PRIOR_STRENGTH * values.mean()) / (counts + PRIOR_STRENGTH)
    return means


def user_indices(feature: Category | Bins, values: pl.Series) -> NDArray[np.int64]:
    """Returns the index of each of ``values``, 0 where it is none of the feature's."""
    if isinstance(feature, Category):
        return _indices(feature, values)
    numbers = _floats(values)
    index = 1 + np.searchsorted(np.array(feature.edges), numbers, side="right")
    return np.where(np.isnan(numbers), 0, index).astype(np.int64)


def moments(names: tuple[str, ...], timestamp: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the indices (n, len(names)) of the moments ``timestamp`` (n,), seconds since the epoch, UTC."""
    hours = timestamp // SECONDS_PER_HOUR
    of: dict[str, Callable[[], NDArray[np.int64]]] = {
        HOUR: lambda: 1 + hours % HOURS_PER_DAY,
        WEEKDAY: lambda: 1 + (hours // HOURS_PER_DAY + EPOCH_WEEKDAY) % DAYS_PER_WEEK,
    }
    return _columns([of[name]() for name in names], len(timestamp))


def _columns(columns: list[NDArray[np.int64]], n_rows: int) -> NDArray[np.int64]:
    return np.stack(columns, axis=1) if columns else np.zeros((n_rows, 0), np.int64)


def _is_text(column: pl.Series) -> bool:
    return column.name not in TEXTS and column.dtype in (pl.String, pl.Boolean, pl.Categorical)


def _is_list(column: pl.Series) -> bool:
    return isinstance(column.dtype, pl.List) and column.dtype.inner == pl.String


def fit_user_feature(column: pl.Series, seen: NDArray[np.bool_]) -> Category | Bins | None:
    """Returns the values or ranges of an attribute of the users ``seen`` (n_users,), None for other types."""
    if column.dtype.is_numeric():
        known = _floats(column)[seen]
        known = known[~np.isnan(known)]
        inner = np.linspace(0, 1, N_BINS + 1)[1:-1]
        return Bins(column.name, tuple(np.unique(np.quantile(known, inner)).tolist())) if len(known) else None
    return _category(column, seen) if _is_text(column) else None


def _category(column: pl.Series, seen: NDArray[np.bool_]) -> Category | None:
    return _vocabulary(column.name, column.cast(pl.String).filter(pl.Series(seen)))


def _list_category(column: pl.Series, seen: NDArray[np.bool_]) -> Category | None:
    return _vocabulary(column.name, column.filter(pl.Series(seen)).explode())


def _vocabulary(name: str, values: pl.Series) -> Category | None:
    """Returns the distinct values, the most frequent first; None where they repeat too rarely to teach."""
    known = values.drop_nulls()
    distinct = known.value_counts().sort(["count", known.name], descending=[True, False])
    if not 0 < distinct.height <= MAX_CATEGORIES or len(known) < MIN_ROWS_PER_CATEGORY * distinct.height:
        return None
    return Category(name, tuple(distinct[known.name].to_list()))


def _indices(feature: Category, values: pl.Series) -> NDArray[np.int64]:
    index = pl.DataFrame({"value": feature.values, "index": np.arange(1, feature.n)})
    joined = (
        values.cast(pl.String).to_frame("value").join(index, on="value", how="left", maintain_order="left")
    )
    return joined["index"].fill_null(0).to_numpy().astype(np.int64)


def _list_indices(feature: Category, column: pl.Series) -> NDArray[np.int64]:
    table = np.zeros((len(column), MAX_LIST), np.int64)
    rows = column.to_frame("value").with_row_index("row").explode("value").drop_nulls("value")
    index = _indices(feature, rows["value"])
    row = rows["row"].to_numpy().astype(np.int64)
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < MAX_LIST
    table[row[kept], place[kept]] = index[kept]
    return table


def _floats(column: pl.Series) -> NDArray[np.float64]:
    values = column.cast(pl.Float64).fill_null(float("nan")).to_numpy().astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)
