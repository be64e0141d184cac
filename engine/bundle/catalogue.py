"""All items servable now: ids and attributes in Arrow columns aligned by item_index."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from numpy.typing import NDArray

from recserve.engine.bundle.attributes import TEXT, Attribute, read_attribute
from recserve.engine.bundle.vocabulary import Vocabulary

log = structlog.get_logger("recserve.bundle")

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

    def extended(self, ids: Sequence[str], attributes: Sequence[Mapping[str, Any]]) -> "Catalogue":
        """Returns a catalogue with further items behind these.

        ``attributes``: of each; those that the catalogue does not have, or of another type than it has, are
        left out, the latter with a line in the log.
        """
        columns: dict[str, pa.Array] = {ITEM_ID: pa.array(ids, type=pa.large_string())}
        for name in self.attribute_names:
            kind = self._table.schema.field(name).type
            values = [of_item.get(name) for of_item in attributes]
            columns[name] = pa.array([_typed(name, value, kind) for value in values], type=kind)
        table = self._table.select([ITEM_ID, *self.attribute_names]).cast(
            pa.schema([(name, column.type) for name, column in columns.items()])
        )
        vocabulary = self.vocabulary.extended(ids)
        return Catalogue(pa.concat_tables([table, pa.table(columns)]).combine_chunks(), vocabulary)

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

    def by_id(self, item_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Returns what :meth:`attributes` does of the known ones among ``item_ids``."""
        indices = self.vocabulary.indices(item_ids)
        known = [(id_, index) for id_, index in zip(item_ids, indices.tolist(), strict=True) if index >= 0]
        found = self.attributes([index for _, index in known])
        return {id_: values for (id_, _), values in zip(known, found, strict=True)}

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


def _typed(name: str, value: Any, kind: pa.DataType) -> Any:
    try:
        return None if value is None else pa.scalar(value, type=kind).as_py()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        log.warning("attribute left out", attribute=name, expected=str(kind), error=str(error))
        return None


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
