"""Vectors that came with the items: an LLM's, a CLIP's, any other model's."""

from pathlib import Path

import numpy as np
import polars as pl

from recserve.errors import DataError
from recserve.training.data.attributes import id_column
from recserve.training.data.columns import EMBEDDING, ITEM_ID
from recserve.training.data.readers import read_table


def join_embeddings(items: pl.DataFrame | None, path: Path, item_column: str | None = None) -> pl.DataFrame:
    """Returns ``items`` with a column ``embedding``, a list of float32 per row, null where there is none.

    ``path``: an .npy file (n_items, d) whose rows follow those of ``items``, or a table (Parquet) with the
    id of an item and one column of lists of numbers; without ``items`` that table alone. Raises
    :class:`DataError` where the two do not fit together.
    """
    if path.suffix == ".npy":
        return _from_array(items, path)
    table = read_table(path)
    vectors = [name for name, kind in table.schema.items() if _is_vector(kind)]
    if len(vectors) != 1:
        raise DataError(
            f"item embeddings {path}",
            found=f"a table with {len(vectors)} columns of lists of numbers",
            expected="the item id and one such column",
        )
    found = table.select(
        pl.col(id_column(table, "item", item_column)).cast(pl.String).alias(ITEM_ID),
        pl.col(vectors[0]).cast(pl.List(pl.Float32)).alias(EMBEDDING),
    ).unique(ITEM_ID, keep="first", maintain_order=True)
    if items is None:
        return found
    own = id_column(items, "item", item_column)
    keyed = items.drop(EMBEDDING, strict=False).with_columns(pl.col(own).cast(pl.String))
    return keyed.join(found, left_on=own, right_on=ITEM_ID, how="left", maintain_order="left")


def _from_array(items: pl.DataFrame | None, path: Path) -> pl.DataFrame:
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"item embeddings {path}", found="unreadable", expected="an .npy array") from error
    if items is None:
        raise DataError(
            f"item embeddings {path}",
            found="without ids",
            expected="the file of items that its rows follow",
            cure="Give --items, or a Parquet file with the ids.",
        )
    if vectors.ndim != 2 or len(vectors) != items.height or not np.issubdtype(vectors.dtype, np.floating):
        raise DataError(
            f"item embeddings {path}",
            found=f"{vectors.dtype} of shape {vectors.shape}",
            expected=f"floats of shape ({items.height}, d), a row for each of the items file",
        )
    column = pl.Series(EMBEDDING, vectors.astype(np.float32)).arr.to_list()
    return items.with_columns(column)


def _is_vector(kind: pl.DataType) -> bool:
    return isinstance(kind, pl.List | pl.Array) and pl.Series(dtype=kind.inner).dtype.is_numeric()
