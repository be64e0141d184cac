"""All items servable now: ids and attributes in Arrow columns aligned by item_index."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recserve.engine.bundle.attributes import TEXT, Attribute, read_attribute
from recserve.engine.bundle.vocabulary import Vocabulary

ITEM_ID = "item_id"


class Catalogue:
    """The items of a bundle; memory-mapped, read-only, safe to share between threads."""

    def __init__(self, table: pa.Table, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.attribute_names = [name for name in table.column_names if name != ITEM_ID]
        self._columns = {name: _plain(table.column(name)) for name in self.attribute_names}
        self._table = table
        # Made when a rule first names it. Two threads may do that at once, with the same result.
        n_items = len(vocabulary)
        every, rows = np.ones(n_items, np.bool_), np.arange(n_items, dtype=np.int32)
        self._read: dict[str, Attribute | None] = {
            ITEM_ID: Attribute(ITEM_ID, TEXT, rows, every, texts=vocabulary, code_of=vocabulary.index_of)
        }

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

    def attribute(self, name: str) -> Attribute | None:
        """Returns the column ``name``, or ``item_id``, as arrays; None when no rule can be evaluated on it.

        Raises KeyError when the catalogue has no such column.
        """
        if name not in self._read:
            self._read[name] = read_attribute(name, self._table.column(name))
        return self._read[name]

    def describe(self) -> list[str]:
        """Returns "price (number)", "genres (texts)", ... of the attributes that rules can use."""
        found = [attribute for name in self.attribute_names if (attribute := self.attribute(name))]
        return [f"{one.name} ({one.kind}{'' if one.indptr is None else 's'})" for one in found]


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns ``column`` in values that JSON has: times as text, decimals as floats, no NaN."""
    kind = column.type
    if pa.types.is_temporal(kind):
        return column.cast(pa.string())
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_finite(column), column, None)
    return column
