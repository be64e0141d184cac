"""Files whose digest is right and whose content is not: what a broken exporter would write."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest

from recserve.engine import Engine
from recserve.errors import BundleInvalid
from tests.engine.bundle.conftest import (
    FILES,
    GOLDEN,
    GRAPH,
    HISTORIES,
    ITEM_LOOKUP,
    ITEMS,
    POPULARITY,
    USER_LOOKUP,
    VECTORS,
    BundleCopy,
    refused,
)

Break = Callable[[BundleCopy], object]
CASES: dict[str, tuple[str, Break]] = {}


def broken(names: str) -> Callable[[Break], Break]:
    """Registers a way to break a bundle; ``names`` must stand in the sentence."""

    def register(change: Break) -> Break:
        CASES[change.__name__] = (names, change)
        return change

    return register


def case(label: str, names: str, change: Break) -> None:
    CASES[label] = (names, change)


for name in FILES:
    case(f"empty {name}", name, lambda bundle, name=name: bundle.write(name, b""))
    case(
        f"truncated {name}",
        name,
        lambda bundle, name=name: bundle.write(name, bundle.read(name)[: len(bundle.read(name)) // 2]),
    )
    case(
        f"random bytes for {name}",
        name,
        lambda bundle, name=name: bundle.write(name, np.random.default_rng(1).bytes(5000)),
    )


def renamed_input(bundle: BundleCopy) -> bytes:
    graph = onnx.load_from_string(bundle.read(GRAPH))
    for node in graph.graph.node:
        node.input[:] = ["past" if name == "history" else name for name in node.input]
    graph.graph.input[0].name = "past"
    return graph.SerializeToString()


def renamed_output(bundle: BundleCopy) -> bytes:
    graph = onnx.load_from_string(bundle.read(GRAPH))
    for node in graph.graph.node:
        node.output[:] = ["vector" if name == "query_embedding" else name for name in node.output]
    graph.graph.output[0].name = "vector"
    return graph.SerializeToString()


def unknown_operator(bundle: BundleCopy) -> bytes:
    graph = onnx.load_from_string(bundle.read(GRAPH))
    graph.graph.node[0].op_type = "NoSuchOperator"
    return graph.SerializeToString()


def outside_data(bundle: BundleCopy) -> bytes:
    graph = onnx.load_from_string(bundle.read(GRAPH))
    tensor = next(t for t in graph.graph.initializer if t.name != "item_embeddings" and t.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"
    return graph.SerializeToString()


case("graph with another input", GRAPH, lambda bundle: bundle.write(GRAPH, renamed_input(bundle)))
case("graph with another output", GRAPH, lambda bundle: bundle.write(GRAPH, renamed_output(bundle)))
case("graph with an unknown operator", GRAPH, lambda bundle: bundle.write(GRAPH, unknown_operator(bundle)))
case("graph with data outside", GRAPH, lambda bundle: bundle.write(GRAPH, outside_data(bundle)))
case(
    "golden outputs that differ",
    GOLDEN,
    lambda bundle: bundle.write_golden(lambda a: a.update(query_embedding=a["query_embedding"] + 0.01)),
)
case(
    "golden outputs that are NaN",
    GOLDEN,
    lambda bundle: bundle.write_golden(lambda a: a.update(query_embedding=a["query_embedding"] * np.nan)),
)
case("golden without outputs", GOLDEN, lambda b: b.write_golden(lambda a: a.pop("query_embedding")))
case("golden without rows", GOLDEN, lambda b: b.write_golden(lambda a: a.update({k: a[k][:0] for k in a})))
case(
    "golden with another shape",
    GOLDEN,
    lambda bundle: bundle.write_golden(lambda a: a.update(query_embedding=a["query_embedding"][:, :3])),
)
case(
    "golden items out of range",
    GOLDEN,
    lambda bundle: bundle.write_golden(lambda a: a.update(history=a["history"] + 10**6)),
)
case("compressed golden", GOLDEN, lambda bundle: bundle.write_golden(lambda a: None, compressed=True))
case("array for an archive", GOLDEN, lambda bundle: bundle.write_array(GOLDEN, np.zeros(3)))


def change_array(label: str, name: str, change: Callable[[Any], Any], *, allow_pickle: bool = False) -> None:
    def apply(bundle: BundleCopy) -> None:
        bundle.write_array(name, change(bundle.array(name)), allow_pickle=allow_pickle)

    case(label, name, apply)


change_array(
    "vectors with NaN", VECTORS, lambda v: np.where(np.arange(16) == 3, np.nan, v).astype(np.float32)
)
change_array("vectors with infinity", VECTORS, lambda v: np.where(v == v.max(), np.inf, v).astype(np.float32))
change_array("vectors of another shape", VECTORS, lambda v: v.T.copy())
change_array("vectors in float64", VECTORS, lambda v: v.astype(np.float64))
change_array("vectors in big endian", VECTORS, lambda v: v.astype(">f4"))
change_array("vectors in Fortran order", VECTORS, np.asfortranarray)
change_array("one vector too few", VECTORS, lambda v: v[:-1])
change_array("pickled vectors", VECTORS, lambda v: v.astype(object), allow_pickle=True)
change_array("one count too few", POPULARITY, lambda p: p[:-1])
change_array("negative popularity", POPULARITY, lambda p: p - 1 - p.min())
change_array("popularity as shares", POPULARITY, lambda p: p / p.sum())
change_array("popularity as a column", POPULARITY, lambda p: p[:, None])
case("pickle for an array", POPULARITY, lambda bundle: bundle.write(POPULARITY, pickle.dumps([1])))
case("archive for an array", POPULARITY, lambda bundle: bundle.write(POPULARITY, bundle.read(GOLDEN)))


def change_column(label: str, name: str, column: str, change: Callable[[Any], Any]) -> None:
    def apply(bundle: BundleCopy) -> None:
        bundle.set_column(name, column, change(bundle.table(name).column(column)))

    case(label, f"{column} of {name}" if column != "item_id" else name.removesuffix(".arrow"), apply)


def replace(column: Any, row: int, value: object) -> pa.Array:
    values = column.to_pylist()
    values[row] = value
    return pa.array(values, column.type)


change_column("lookup row beyond the end", ITEM_LOOKUP, "row", lambda c: replace(c, 5, 1000))
change_column("lookup row below zero", ITEM_LOOKUP, "row", lambda c: replace(c, 5, -1))
change_column("lookup row twice", ITEM_LOOKUP, "row", lambda c: replace(c, 5, c[6].as_py()))
change_column("lookup rows in int64", ITEM_LOOKUP, "row", lambda c: c.cast(pa.int64()))
change_column("null in the lookup", ITEM_LOOKUP, "row", lambda c: replace(c, 5, None))
change_column("hashes out of order", ITEM_LOOKUP, "hash", lambda c: pa.array(c.to_pylist()[::-1], c.type))
change_column("hashes of other ids", USER_LOOKUP, "hash", lambda c: pa.array(range(len(c)), c.type))
case("short lookup", ITEM_LOOKUP, lambda b: b.write_table(ITEM_LOOKUP, b.table(ITEM_LOOKUP).slice(1)))
case("swapped lookups", ITEM_LOOKUP, lambda b: b.write(ITEM_LOOKUP, b.read(USER_LOOKUP)))
change_column("duplicate item", ITEMS, "item_id", lambda c: replace(c, 5, c[6].as_py()))
change_column("null item", ITEMS, "item_id", lambda c: replace(c, 5, None))
change_column("empty item id", ITEMS, "item_id", lambda c: replace(c, 5, ""))
change_column("item id of 10 kB", ITEMS, "item_id", lambda c: replace(c, 5, "x" * 10_000))
change_column("numbers for item ids", ITEMS, "item_id", lambda c: pa.array(range(len(c))))
case("one item too few", ITEMS, lambda b: b.write_table(ITEMS, b.table(ITEMS).slice(1)))
case("no item ids", "item_id", lambda b: b.write_table(ITEMS, b.table(ITEMS).drop_columns("item_id")))
case(
    "attribute twice",
    "title",
    lambda b: b.write_table(ITEMS, b.table(ITEMS).append_column("title", b.table(ITEMS).column("title"))),
)
case(
    "histories without times",
    "timestamps",
    lambda b: b.write_table(HISTORIES, b.table(HISTORIES).drop_columns("timestamps")),
)
change_column("history item beyond the end", HISTORIES, "items", lambda c: with_last_item(c, 1000))
change_column("history item below zero", HISTORIES, "items", lambda c: with_last_item(c, -1))
change_column("null in a history", HISTORIES, "items", lambda c: with_last_item(c, None))
change_column("null for a history", HISTORIES, "items", lambda c: replace(c, 5, None))
change_column("histories in int64", HISTORIES, "items", lambda c: c.cast(pa.large_list(pa.int64())))
change_column("times that do not fit", HISTORIES, "timestamps", lambda c: replace(c, 5, [1] * 999))
case("one user too few", USER_LOOKUP, lambda b: b.write_table(HISTORIES, b.table(HISTORIES).slice(1)))


def with_last_item(column: Any, item: int | None) -> pa.Array:
    return replace(column, -1, [*column[-1].as_py()[:-1], item])


@broken(ITEMS)
def arrow_offsets_out_of_range(bundle: BundleCopy) -> None:
    # The offsets of the first string column: plain int64 that Arrow reads without a look.
    data = bytearray(bundle.read(ITEMS))
    offsets = bundle.table(ITEMS).column("item_id").chunk(0).buffers()[1].to_pybytes()
    start = bytes(data).index(offsets[:64])
    data[start + 8 : start + 16] = (1 << 40).to_bytes(8, "little")
    bundle.write(ITEMS, bytes(data))


@pytest.mark.parametrize("label", CASES)
def test_wrong_content_is_refused(bundle: BundleCopy, label: str) -> None:
    names, change = CASES[label]
    change(bundle)
    refused(bundle, names)


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
