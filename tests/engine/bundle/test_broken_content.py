"""Files whose digest is right and whose content is not: what a broken exporter would write."""

import pickle
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recserve.engine import Engine
from recserve.errors import BundleInvalid
from recserve.errors import BundleReason as R
from tests.engine.bundle.conftest import (
    FILES,
    GOLDEN,
    HISTORIES,
    ITEM_LOOKUP,
    ITEMS,
    POPULARITY,
    USER_LOOKUP,
    VECTORS,
    BundleCopy,
    Cases,
    refused,
)

CASES = Cases()
case = CASES.add


for name in FILES:
    reason = R.GOLDEN_MALFORMED if name == GOLDEN else R.CONTENT_MALFORMED
    case(f"empty {name}", reason, name, lambda bundle, name=name: bundle.write(name, b""))
    case(
        f"truncated {name}",
        reason,
        name,
        lambda bundle, name=name: bundle.write(name, bundle.read(name)[: len(bundle.read(name)) // 2]),
    )
    case(
        f"random bytes for {name}",
        reason,
        name,
        lambda bundle, name=name: bundle.write(name, np.random.default_rng(1).bytes(5000)),
    )


case(
    "golden outputs that differ",
    R.GOLDEN_DIFFERS,
    GOLDEN,
    lambda bundle: bundle.write_golden(lambda a: a.update(query_embedding=a["query_embedding"] + 0.01)),
)
case(
    "golden outputs that are NaN",
    R.GOLDEN_DIFFERS,
    GOLDEN,
    lambda bundle: bundle.write_golden(lambda a: a.update(query_embedding=a["query_embedding"] * np.nan)),
)
case(
    "golden without outputs",
    R.GOLDEN_MALFORMED,
    GOLDEN,
    lambda b: b.write_golden(lambda a: a.pop("query_embedding")),
)
case(
    "golden without rows",
    R.GOLDEN_MALFORMED,
    GOLDEN,
    lambda b: b.write_golden(lambda a: a.update({k: a[k][:0] for k in a})),
)
case(
    "golden with another shape",
    R.GOLDEN_MALFORMED,
    GOLDEN,
    lambda bundle: bundle.write_golden(lambda a: a.update(query_embedding=a["query_embedding"][:, :3])),
)
case(
    "golden items out of range",
    R.GRAPH_FAILS,
    GOLDEN,
    lambda bundle: bundle.write_golden(lambda a: a.update(history=a["history"] + 10**6)),
)
case(
    "compressed golden",
    R.GOLDEN_MALFORMED,
    GOLDEN,
    lambda bundle: bundle.write_golden(lambda a: None, compressed=True),
)
case(
    "array for an archive", R.GOLDEN_MALFORMED, GOLDEN, lambda bundle: bundle.write_array(GOLDEN, np.zeros(3))
)


def change_array(
    label: str, reason: R, name: str, change: Callable[[Any], Any], *, allow_pickle: bool = False
) -> None:
    def apply(bundle: BundleCopy) -> None:
        bundle.write_array(name, change(bundle.array(name)), allow_pickle=allow_pickle)

    case(label, reason, name, apply)


change_array(
    "vectors with NaN",
    R.NOT_FINITE,
    VECTORS,
    lambda v: np.where(np.arange(16) == 3, np.nan, v).astype(np.float32),
)
change_array(
    "vectors with infinity",
    R.NOT_FINITE,
    VECTORS,
    lambda v: np.where(v == v.max(), np.inf, v).astype(np.float32),
)
change_array("vectors of another shape", R.SHAPE, VECTORS, lambda v: v.T.copy())
change_array("vectors in float64", R.ARRAY_TYPE, VECTORS, lambda v: v.astype(np.float64))
change_array("vectors in big endian", R.ARRAY_TYPE, VECTORS, lambda v: v.astype(">f4"))
change_array("vectors in Fortran order", R.ARRAY_TYPE, VECTORS, np.asfortranarray)
change_array("one vector too few", R.SHAPE, VECTORS, lambda v: v[:-1])
change_array("pickled vectors", R.CONTENT_MALFORMED, VECTORS, lambda v: v.astype(object), allow_pickle=True)
change_array("one count too few", R.SHAPE, POPULARITY, lambda p: p[:-1])
change_array("negative popularity", R.VALUE_RANGE, POPULARITY, lambda p: p - 1 - p.min())
change_array("popularity as shares", R.ARRAY_TYPE, POPULARITY, lambda p: p / p.sum())
change_array("popularity as a column", R.SHAPE, POPULARITY, lambda p: p[:, None])
case(
    "pickle for an array",
    R.CONTENT_MALFORMED,
    POPULARITY,
    lambda bundle: bundle.write(POPULARITY, pickle.dumps([1])),
)
case(
    "archive for an array",
    R.CONTENT_MALFORMED,
    POPULARITY,
    lambda bundle: bundle.write(POPULARITY, bundle.read(GOLDEN)),
)


def change_column(label: str, reason: R, name: str, column: str, change: Callable[[Any], Any]) -> None:
    def apply(bundle: BundleCopy) -> None:
        bundle.set_column(name, column, change(bundle.table(name).column(column)))

    case(label, reason, f"{column} of {name}" if column != "item_id" else name.removesuffix(".arrow"), apply)


def replace(column: Any, row: int, value: object) -> pa.Array:
    values = column.to_pylist()
    values[row] = value
    return pa.array(values, column.type)


change_column("lookup row beyond the end", R.LOOKUP, ITEM_LOOKUP, "row", lambda c: replace(c, 5, 1000))
change_column("lookup row below zero", R.LOOKUP, ITEM_LOOKUP, "row", lambda c: replace(c, 5, -1))
change_column("lookup row twice", R.LOOKUP, ITEM_LOOKUP, "row", lambda c: replace(c, 5, c[6].as_py()))
change_column("lookup rows in int64", R.TABLE_COLUMNS, ITEM_LOOKUP, "row", lambda c: c.cast(pa.int64()))
change_column("null in the lookup", R.TABLE_COLUMNS, ITEM_LOOKUP, "row", lambda c: replace(c, 5, None))
change_column(
    "hashes out of order", R.LOOKUP, ITEM_LOOKUP, "hash", lambda c: pa.array(c.to_pylist()[::-1], c.type)
)
change_column("hashes of other ids", R.LOOKUP, USER_LOOKUP, "hash", lambda c: pa.array(range(len(c)), c.type))
case(
    "short lookup", R.SHAPE, ITEM_LOOKUP, lambda b: b.write_table(ITEM_LOOKUP, b.table(ITEM_LOOKUP).slice(1))
)
case("swapped lookups", R.SHAPE, ITEM_LOOKUP, lambda b: b.write(ITEM_LOOKUP, b.read(USER_LOOKUP)))
change_column("duplicate item", R.IDS, ITEMS, "item_id", lambda c: replace(c, 5, c[6].as_py()))
change_column("null item", R.TABLE_COLUMNS, ITEMS, "item_id", lambda c: replace(c, 5, None))
change_column("empty item id", R.IDS, ITEMS, "item_id", lambda c: replace(c, 5, ""))
change_column("item id of 10 kB", R.IDS, ITEMS, "item_id", lambda c: replace(c, 5, "x" * 10_000))
change_column("numbers for item ids", R.TABLE_COLUMNS, ITEMS, "item_id", lambda c: pa.array(range(len(c))))
case("one item too few", R.SHAPE, ITEMS, lambda b: b.write_table(ITEMS, b.table(ITEMS).slice(1)))
case(
    "no item ids",
    R.TABLE_COLUMNS,
    "item_id",
    lambda b: b.write_table(ITEMS, b.table(ITEMS).drop_columns("item_id")),
)
case(
    "attribute twice",
    R.TABLE_COLUMNS,
    "title",
    lambda b: b.write_table(ITEMS, b.table(ITEMS).append_column("title", b.table(ITEMS).column("title"))),
)
case(
    "histories without times",
    R.TABLE_COLUMNS,
    "timestamps",
    lambda b: b.write_table(HISTORIES, b.table(HISTORIES).drop_columns("timestamps")),
)
change_column(
    "history item beyond the end", R.VALUE_RANGE, HISTORIES, "items", lambda c: with_last_item(c, 1000)
)
change_column("history item below zero", R.VALUE_RANGE, HISTORIES, "items", lambda c: with_last_item(c, -1))
change_column("null in a history", R.TABLE_COLUMNS, HISTORIES, "items", lambda c: with_last_item(c, None))
change_column("null for a history", R.TABLE_COLUMNS, HISTORIES, "items", lambda c: replace(c, 5, None))
change_column(
    "histories in int64", R.TABLE_COLUMNS, HISTORIES, "items", lambda c: c.cast(pa.large_list(pa.int64()))
)
change_column("times that do not fit", R.SHAPE, HISTORIES, "timestamps", lambda c: replace(c, 5, [1] * 999))
case(
    "one user too few", R.SHAPE, USER_LOOKUP, lambda b: b.write_table(HISTORIES, b.table(HISTORIES).slice(1))
)


def with_last_item(column: Any, item: int | None) -> pa.Array:
    return replace(column, -1, [*column[-1].as_py()[:-1], item])


@CASES.broken(R.CONTENT_MALFORMED, ITEMS)
def arrow_offsets_out_of_range(bundle: BundleCopy) -> None:
    # The offsets of the first string column: plain int64 that Arrow reads without a look.
    data = bytearray(bundle.read(ITEMS))
    offsets = bundle.table(ITEMS).column("item_id").chunk(0).buffers()[1].to_pybytes()
    start = bytes(data).index(offsets[:64])
    data[start + 8 : start + 16] = (1 << 40).to_bytes(8, "little")
    bundle.write(ITEMS, bytes(data))


@pytest.mark.parametrize("label", CASES)
def test_wrong_content_is_refused(bundle: BundleCopy, label: str) -> None:
    refused(bundle, CASES[label])


def test_a_traceback_that_shows_variables_reads_no_foreign_memory(bundle: BundleCopy) -> None:
    arrow_offsets_out_of_range(bundle)
    with pytest.raises(BundleInvalid) as caught:
        Engine.load(bundle.folder)
    error: BaseException | None = caught.value
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            # To show one is to read it: that ended the process.
            assert not [name for name, value in frame.f_locals.items() if isinstance(value, pa.Table)]
        error = error.__cause__


def test_the_copy_is_fine_unless_it_is_broken(bundle: BundleCopy) -> None:
    # Otherwise the cases above would prove nothing.
    bundle.edit(lambda manifest: None)
    bundle.write(ITEMS, bundle.read(ITEMS))
    bundle.write_table(HISTORIES, bundle.table(HISTORIES))
    bundle.write_golden(lambda arrays: None)
    Engine.load(bundle.folder).close()


def test_many_random_bits_never_crash_the_reader(bundle: BundleCopy) -> None:
    generator = np.random.default_rng(11)
    for name in (ITEMS, ITEM_LOOKUP, HISTORIES, POPULARITY, GOLDEN):
        good = bundle.read(name)
        for _ in range(12):
            data = bytearray(good)
            for position in generator.integers(0, len(data), 8):
                data[position] ^= 1 << int(generator.integers(8))
            bundle.write(name, bytes(data))
            try:
                Engine.load(bundle.folder).close()
            except BundleInvalid:
                continue
        bundle.write(name, good)
