"""Bundles damaged in every way we could think of: each is refused with one sentence that names the part."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest

from recserve.engine import Engine
from recserve.errors import BundleInvalid

GRAPH = "variants/fp32/query_encoder.onnx"
GOLDEN = "variants/fp32/golden.npz"
VECTORS, POPULARITY = "item_embeddings.npy", "popularity.npy"
ITEMS, ITEM_LOOKUP = "items.arrow", "item_lookup.arrow"
HISTORIES, USER_LOOKUP = "histories.arrow", "user_lookup.arrow"
FILES = (GRAPH, GOLDEN, VECTORS, POPULARITY, ITEMS, ITEM_LOOKUP, HISTORIES, USER_LOOKUP)

Break = Callable[[Any], object]
CASES: dict[str, tuple[str, Break]] = {}


def broken(names: str) -> Callable[[Break], Break]:
    """Registers a way to break a bundle; ``names`` must stand in the sentence."""

    def register(change: Break) -> Break:
        CASES[change.__name__] = (names, change)
        return change

    return register


def case(label: str, names: str, change: Break) -> None:
    CASES[label] = (names, change)


def in_manifest(label: str, names: str, change: Callable[[dict[str, Any]], object]) -> None:
    case(label, names, lambda bundle: bundle.edit(change))


def text_of_manifest(label: str, names: str, change: Callable[[str], str]) -> None:
    case(
        label,
        names,
        lambda bundle: bundle.manifest_path.write_text(change(bundle.manifest_path.read_text())),
    )


def rename_file(new: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["files"].update({new: manifest["files"].pop(ITEMS)})


# The manifest.
text_of_manifest("torn manifest", "manifest.json", lambda text: text[: len(text) // 2])
text_of_manifest("empty manifest", "manifest.json", lambda text: "")
text_of_manifest("duplicate keys", "model", lambda text: '{"model": "a", ' + text[1:])
text_of_manifest("NaN", "NaN", lambda text: re.sub(r'"seed": \d+', '"seed": NaN', text))
text_of_manifest("a number beyond float", "1e999", lambda text: re.sub(r'"seed": \d+', '"seed": 1e999', text))
text_of_manifest(
    "5,000 digits", "manifest.json", lambda text: re.sub(r'"seed": \d+', '"seed": ' + "9" * 5000, text)
)
text_of_manifest("nested without end", "manifest.json", lambda text: "[" * 200_000)
text_of_manifest("a list for a manifest", "manifest.json", lambda text: "[]")
text_of_manifest("lone surrogate", "model", lambda text: text.replace('"sasrec"', r'"\ud800"'))
in_manifest("unknown field", "modell", lambda m: m.update(modell="x"))
in_manifest("unknown nested field", "max_histroy", lambda m: m["inputs"].update(max_histroy=1))
in_manifest("missing field", "created_at", lambda m: m.pop("created_at"))
in_manifest("wrong type", "n_items", lambda m: m.update(n_items="many"))
in_manifest("boolean for a number", "embedding_size", lambda m: m.update(embedding_size=True))
in_manifest("format of the future", "format_version", lambda m: m.update(format_version=2))
in_manifest("no format", "format_version", lambda m: m.pop("format_version"))
in_manifest("unknown default variant", "default_variant", lambda m: m.update(default_variant="int8"))
in_manifest("no variants", "default_variant", lambda m: m.update(variants={}))
in_manifest("variant without its file", "fp32", lambda m: m["variants"]["fp32"].update(golden="x.npz"))
in_manifest("no items", "n_items", lambda m: m.update(n_items=0))
in_manifest("endless history", "max_history", lambda m: m["inputs"].update(max_history=1 << 30))
in_manifest("history that the graph cannot take", "max_history", lambda m: m["inputs"].update(max_history=64))
in_manifest("parent folder", "../items.arrow", rename_file("../items.arrow"))
in_manifest("absolute path", "/etc/passwd", rename_file("/etc/passwd"))
in_manifest("backslash", "..\\", rename_file("..\\items.arrow"))
in_manifest("NUL in a path", "file name", rename_file("items\0.arrow"))
in_manifest("short digest", ITEMS, lambda m: m["files"][ITEMS].update(sha256="00"))
in_manifest("negative size", ITEMS, lambda m: m["files"][ITEMS].update(size_bytes=-1))
in_manifest("forged log line", "field", lambda m: m.update({"x\nERROR all is lost": 1}))
in_manifest("unknown feature", "features", lambda m: m["inputs"].update(features=["history", "mood"]))
in_manifest("feature without a graph input", GRAPH, lambda m: m["inputs"]["features"].append("time_gaps"))
in_manifest("more items than vectors", "1001", lambda m: m.update(n_items=1001))
in_manifest("wider embeddings", VECTORS, lambda m: m.update(embedding_size=17))


@broken("manifest.json")
def manifest_not_utf8(bundle: Any) -> None:
    bundle.manifest_path.write_bytes(b'{"model": "\xff"}')


@broken("manifest.json")
def no_manifest(bundle: Any) -> None:
    bundle.manifest_path.unlink()


@broken("manifest.json")
def manifest_through_a_link(bundle: Any) -> None:
    bundle.manifest_path.rename(bundle.folder.with_name("elsewhere.json"))
    bundle.manifest_path.symlink_to(bundle.folder.with_name("elsewhere.json"))


@broken("manifest.json")
def manifest_is_a_pipe(bundle: Any) -> None:
    bundle.manifest_path.unlink()
    os.mkfifo(bundle.manifest_path)


# Files as the directory has them.
for name in FILES:
    case(f"flipped bit in {name}", f"SHA-256 of {name}", lambda bundle, name=name: bundle.flip_bit(name))
    case(f"missing {name}", name, lambda bundle, name=name: (bundle.folder / name).unlink())
    if not name.startswith("variants"):
        in_manifest(f"unlisted {name}", name, lambda m, name=name: m["files"].pop(name))
case(
    "longer file",
    f"size of {ITEMS}",
    lambda bundle: (bundle.folder / ITEMS).write_bytes(bundle.read(ITEMS) + b"x"),
)
case("extra file", "readme.txt", lambda bundle: (bundle.folder / "readme.txt").write_text("x"))
case("extra link to a folder", "more", lambda bundle: (bundle.folder / "more").symlink_to("/tmp"))


@broken(ITEMS)
def symlink_for_a_file(bundle: Any) -> None:
    (bundle.folder / ITEMS).rename(bundle.folder.with_name("outside"))
    (bundle.folder / ITEMS).symlink_to(bundle.folder.with_name("outside"))


@broken(ITEMS)
def hardlink_from_outside(bundle: Any) -> None:
    (bundle.folder.with_name("outside")).hardlink_to(bundle.folder / ITEMS)


@broken("variants")
def symlink_for_a_folder(bundle: Any) -> None:
    (bundle.folder / "variants").rename(bundle.folder.with_name("outside"))
    (bundle.folder / "variants").symlink_to(bundle.folder.with_name("outside"))


@broken(VECTORS)
def pipe_for_a_file(bundle: Any) -> None:
    (bundle.folder / VECTORS).unlink()
    os.mkfifo(bundle.folder / VECTORS)


@broken(VECTORS)
def folder_for_a_file(bundle: Any) -> None:
    (bundle.folder / VECTORS).unlink()
    (bundle.folder / VECTORS).mkdir()


# Files with a correct digest and content of another kind: what a broken exporter would write.
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


def renamed_input(bundle: Any) -> bytes:
    graph = onnx.load_from_string(bundle.read(GRAPH))
    for node in graph.graph.node:
        node.input[:] = ["past" if name == "history" else name for name in node.input]
    graph.graph.input[0].name = "past"
    return graph.SerializeToString()


def renamed_output(bundle: Any) -> bytes:
    graph = onnx.load_from_string(bundle.read(GRAPH))
    for node in graph.graph.node:
        node.output[:] = ["vector" if name == "query_embedding" else name for name in node.output]
    graph.graph.output[0].name = "vector"
    return graph.SerializeToString()


def outside_data(bundle: Any) -> bytes:
    graph = onnx.load_from_string(bundle.read(GRAPH))
    tensor = next(t for t in graph.graph.initializer if t.name != "item_embeddings" and t.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"
    return graph.SerializeToString()


case("graph with another input", GRAPH, lambda bundle: bundle.write(GRAPH, renamed_input(bundle)))
case("graph with another output", GRAPH, lambda bundle: bundle.write(GRAPH, renamed_output(bundle)))
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
    def apply(bundle: Any) -> None:
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
case("archive for an array", POPULARITY, lambda bundle: bundle.write(POPULARITY, bundle.read(GOLDEN)))


def change_column(label: str, name: str, column: str, change: Callable[[Any], Any]) -> None:
    def apply(bundle: Any) -> None:
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
def arrow_offsets_out_of_range(bundle: Any) -> None:
    # The offsets of the first string column: plain int64 that Arrow reads without a look.
    data = bytearray(bundle.read(ITEMS))
    offsets = bundle.table(ITEMS).column("item_id").chunk(0).buffers()[1].to_pybytes()
    start = bytes(data).index(offsets[:64])
    data[start + 8 : start + 16] = (1 << 40).to_bytes(8, "little")
    bundle.write(ITEMS, bytes(data))


@pytest.mark.parametrize("label", CASES)
def test_a_broken_bundle_is_refused_with_one_sentence(bundle: Any, label: str) -> None:
    names, change = CASES[label]
    change(bundle)
    with pytest.raises(BundleInvalid) as caught:
        Engine.load(bundle.folder)
    sentence = str(caught.value)
    assert names in sentence
    assert re.fullmatch(r"[^\n]+ is [^\n]+; expected [^\n]+\.( [A-Z][^\n]*[.?])?", sentence)
    assert len(sentence) < 350
    assert caught.value.exit_code == 5


def test_the_copy_is_fine_unless_it_is_broken(bundle: Any) -> None:
    # Otherwise the cases above would prove nothing.
    bundle.edit(lambda manifest: None)
    bundle.write(ITEMS, bundle.read(ITEMS))
    bundle.write_table(HISTORIES, bundle.table(HISTORIES))
    bundle.write_golden(lambda arrays: None)
    Engine.load(bundle.folder).close()


@pytest.mark.parametrize("found", ["nowhere", "a file"])
def test_a_path_without_a_bundle_is_named(tmp_path: Path, found: str) -> None:
    path = tmp_path / "bundle"
    if found == "a file":
        path.write_text("x")
    with pytest.raises(BundleInvalid, match="not a folder"):
        Engine.load(path)


def test_many_random_bits_never_crash_the_reader(bundle: Any) -> None:
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
