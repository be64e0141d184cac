"""What is known about items, as arrays that a rule can be evaluated on: (n_items,), aligned by item_index."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

NUMBER, TEXT, BOOLEAN, TIME = "number", "text", "boolean", "time"


def _no_code(text: str) -> int:
    return -1


@dataclass(frozen=True, slots=True)
class Attribute:
    """One column of the catalogue.

    ``kind``: NUMBER (int64 or float64), TEXT (int32 codes: ``texts[code]``, and ``code_of`` the other way, −1
    for an unknown text), BOOLEAN (bool) or TIME (int64 microseconds since the epoch). ``values``: (n_items,),
    or those of all lists one after the other, item i having ``values[indptr[i]:indptr[i + 1]]``. ``known``:
    (n_items,) bool, False where the item lacks it.
    """

    name: str
    kind: str
    values: NDArray[Any]
    known: NDArray[np.bool_]
    indptr: NDArray[np.int64] | None = None
    texts: Sequence[str] = ()
    code_of: Callable[[str], int] = _no_code

    def any_of(self, matches: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Returns (n_items,) bool: whether a value of an item matches; matches: bool, as long as values."""
        if self.indptr is None:
            return matches & self.known
        before = np.concatenate([[0], np.cumsum(matches)])
        found: NDArray[np.bool_] = before[self.indptr[1:]] > before[self.indptr[:-1]]
        return found


def read_attribute(name: str, column: pa.ChunkedArray) -> Attribute | None:
    """Returns ``column`` as arrays, None for other than numbers, texts, booleans, times and their lists.

    A number that is not finite is a missing one.
    """
    array = column.combine_chunks()
    known = np.asarray(array.is_valid())
    indptr = None
    if _is_list(array.type):
        parents = np.asarray(pc.list_parent_indices(array))
        array = pc.list_flatten(array)
        kept = np.asarray(array.is_valid())
        lengths = np.bincount(parents[kept], minlength=len(known))
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        array = array.filter(pa.array(kept))
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    read = _values(array)
    if read is None:
        return None
    kind, values, texts = read
    if indptr is None and values.dtype == np.float64:
        known = known & np.isfinite(values)
    codes = {text: code for code, text in enumerate(texts)}
    return Attribute(name, kind, values, known, indptr, texts, lambda text: codes.get(text, -1))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _values(array: pa.Array) -> tuple[str, NDArray[Any], list[str]] | None:
    """Returns the kind, the values (anything where one is missing) and the texts that codes stand for."""
    kind = array.type
    if pa.types.is_boolean(kind):
        return BOOLEAN, np.asarray(array.fill_null(False)), []
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return NUMBER, np.asarray(array.cast(pa.int64()).fill_null(0)), []
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_integer(kind):
        return NUMBER, np.asarray(array.cast(pa.float64(), safe=False).fill_null(np.nan)), []
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        times = array.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return TIME, np.asarray(times.fill_null(0)), []
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        encoded = array.dictionary_encode()
        return (
            TEXT,
            np.asarray(encoded.indices.fill_null(-1)).astype(np.int32),
            encoded.dictionary.to_pylist(),
        )
    return None
