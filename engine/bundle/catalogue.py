"""All items servable now: ids and attributes in Arrow columns aligned by item_index."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recserve.engine.bundle.vocabulary import Vocabulary

ITEM_ID = "item_id"


class Catalogue:
    """The items of a bundle; memory-mapped, read-only, safe to share between threads."""

    def __init__(self, table: pa.Table, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.attribute_names = [name for name in table.column_names if name != ITEM_ID]
        self._columns = {name: _plain(table.column(name)) for name in self.attribute_names}

    def __len__(self) -> int:
        return len(self.vocabulary)

    def attributes(self, indices: Sequence[int] | NDArray[np.int32]) -> list[dict[str, Any]]:
        """Returns title, category, price, ... of each item, without the attributes that it lacks."""
        rows = pa.array(indices, type=pa.int64())
        columns = {name: column.take(rows).to_pylist() for name, column in self._columns.items()}
        return [
            {name: values[i] for name, values in columns.items() if values[i] is not None}
            for i in range(len(rows))
        ]


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns ``column`` as JSON and the wire can carry it: times as text, decimals as floats, no NaN."""
    kind = column.type
    if pa.types.is_temporal(kind):
        return column.cast(pa.string())
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_finite(column), column, None)
    return column
