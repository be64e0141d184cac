"""The attributes of users or items as one matrix: values one-hot, numbers on one scale, text and embeddings.

What is fitted (which values there are, the scale of a number) is fitted on the rows that training knows; a
row that training does not know is described by the same columns.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recserve.errors import DataError
from recserve.training.data import Dataset, Split
from recserve.training.features.text import HashingEncoder, TextEncoder, unit_rows
from recserve.training.ranking.normalise import Normaliser

TEXT_COLUMNS = ("title", "description")
TEXT_TYPES = (pl.String, pl.Categorical, pl.Enum, pl.Boolean)
# A value that few rows share says what the id says.
MIN_ROWS_PER_VALUE = 2
MAX_VALUES = 500
# A price far outside what training saw must not carry an item away.
MAX_Z_SCORE = 5.0


def known_attributes(dataset: Dataset, split: Split) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the matrices of the users and of the items of ``dataset``, fitted on what train knows."""
    encoder = HashingEncoder()
    known_items = np.bincount(split.train.item_index, minlength=dataset.n_items) > 0
    return (
        attribute_matrix(dataset.users, split.train.lengths > 0, encoder),
        attribute_matrix(dataset.items, known_items, encoder),
    )


def attribute_matrix(
    table: pl.DataFrame, known: NDArray[np.bool_], encoder: TextEncoder
) -> NDArray[np.float32]:
    """Returns what the columns after the first say of each row, (n_rows, n_features) float32.

    table: users or items, the id first · known: (n_rows,) which rows training knows · encoder: of titles and
    descriptions. Texts, lists of texts and truth values become one column per value that at least two known
    rows have, of length 1 per row; numbers and dates are z-scored, none becomes 0; lists of numbers of one
    length (precomputed embeddings) are scaled to a mean length of 1. Lists of lists, structs and binary are
    left out. Raises :class:`DataError` for embeddings of several lengths or with what is no number.
    """
    parts = [np.zeros((table.height, 0), np.float32)]
    for name in table.columns[1:]:
        column = table[name]
        kind = column.dtype
        if name in TEXT_COLUMNS and kind == pl.String:
            parts.append(encoder.encode(column.fill_null("").to_list()))
        elif isinstance(kind, pl.List | pl.Array):
            # A column of what the list holds, for its type.
            inner = pl.Series(dtype=kind.inner).dtype
            if inner.is_numeric():
                parts.append(_embeddings(column, known))
            elif inner in TEXT_TYPES:
                parts.append(_one_hot(column.cast(pl.List(pl.String)).to_list(), known))
        elif kind in TEXT_TYPES:
            values = column.cast(pl.String).to_list()
            parts.append(_one_hot([[value] for value in values], known))
        elif kind.is_numeric() or kind.is_temporal():
            parts.append(_z_scores(column, known))
    return np.concatenate(parts, axis=1)


def _embeddings(column: pl.Series, known: NDArray[np.bool_]) -> NDArray[np.float32]:
    rows = column.to_list()
    lengths = {len(row) for row in rows if row is not None}
    if len(lengths) != 1:
        raise DataError(
            f"embeddings in column {column.name}",
            found=f"of {len(lengths)} lengths" if lengths else "empty",
            expected="lists of one length",
        )
    none = [0.0] * lengths.pop()
    vectors = np.array([none if row is None else row for row in rows], np.float32)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise DataError(
            f"embedding in row {row} of column {column.name}", found="not finite", expected="numbers"
        )
    norms = np.linalg.norm(vectors, axis=1)
    fitted = norms[known & (norms > 0)]
    return vectors / np.float32(fitted.mean() if len(fitted) else 1.0)


def _one_hot(rows: list[list[str | None] | None], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    sets = [{value for value in row or () if value} for row in rows]
    counts: dict[str, int] = {}
    for row in np.flatnonzero(known).tolist():
        for value in sets[row]:
            counts[value] = counts.get(value, 0) + 1
    frequent = sorted(counts, key=lambda value: (-counts[value], value))[:MAX_VALUES]
    place = {value: i for i, value in enumerate(frequent) if counts[value] >= MIN_ROWS_PER_VALUE}
    matrix = np.zeros((len(rows), len(place)), np.float32)
    for i, values in enumerate(sets):
        matrix[i, [place[value] for value in values if value in place]] = 1
    return unit_rows(matrix)


def _z_scores(column: pl.Series, known: NDArray[np.bool_]) -> NDArray[np.float32]:
    values = column.to_physical().cast(pl.Float64).fill_null(np.nan).to_numpy()
    values = np.where(np.isfinite(values), values, np.nan)
    scores = Normaliser.fit(values[known], "z-score").apply(values)
    return np.clip(scores, -MAX_Z_SCORE, MAX_Z_SCORE)[:, None]
