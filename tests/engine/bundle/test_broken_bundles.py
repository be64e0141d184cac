"""No broken bundle is served: each is refused with one sentence that names what is wrong."""

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest

from recserve.engine import Engine
from recserve.engine.bundle import layout
from recserve.errors import BundleInvalid

GRAPH = "variants/fp32/query_encoder.onnx"
GOLDEN = "variants/fp32/golden.npz"
Breaker = Callable[[Path], None]


def change_manifest(change: Callable[[dict[str, Any]], None]) -> Breaker:
    def breaker(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return breaker


def manifest_text(change: Callable[[str], str]) -> Breaker:
    def breaker(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(change(path.read_text()))

    return breaker


def flip(name: str) -> Breaker:
    def breaker(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return breaker


def sealed(name: str, write: Callable[[Path], None]) -> Breaker:
    """Rewrites a file and corrects its size and digest: only its content is wrong."""

    def breaker(folder: Path) -> None:
        write(folder / name)
        data = (folder / name).read_bytes()
        entry = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        change_manifest(lambda manifest: manifest["files"].__setitem__(name, entry))(folder)

    return breaker


def array(name: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> Breaker:
    return sealed(name, lambda path: np.save(path, change(np.load(path)), allow_pickle=True))


def table(name: str, change: Callable[[pa.Table], pa.Table]) -> Breaker:
    def write(path: Path) -> None:
        changed = change(pa.ipc.open_file(io.BytesIO(path.read_bytes())).read_all())
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, changed.schema) as out:
            out.write_table(changed)

    return sealed(name, write)


def column(name: str, values: Callable[[pa.ChunkedArray], Any]) -> Callable[[pa.Table], pa.Table]:
    def change(found: pa.Table) -> pa.Table:
        index = found.column_names.index(name)
        return found.set_column(index, name, values(found.column(name)))

    return change


def graph(change: Callable[[onnx.ModelProto], None]) -> Breaker:
    def write(path: Path) -> None:
        proto = onnx.load_model_from_string(path.read_bytes())
        change(proto)
        path.write_bytes(proto.SerializeToString())

    return sealed(GRAPH, write)


def rename_input(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name == layout.HISTORY_INPUT:
                node.input[i] = "items"
    proto.graph.input[0].name = "items"


def replaced_by(make: Callable[[Path], None]) -> Breaker:
    def breaker(folder: Path) -> None:
        path = folder / layout.POPULARITY
        path.rename(folder.parent / "elsewhere.npy")
        make(path)

    return breaker


def golden_of(change: Callable[[dict[str, Any]], None]) -> Breaker:
    def write(path: Path) -> None:
        with np.load(path) as found:
            arrays = {name: found[name] for name in found.files}
        change(arrays)
        with path.open("wb") as file:
            np.savez(file, **arrays)

    return sealed(GOLDEN, write)


def shifted(lists: pa.ChunkedArray) -> pa.LargeListArray:
    whole = lists.combine_chunks()
    return pa.LargeListArray.from_arrays(whole.offsets, pa.array(whole.values.to_numpy() + 1000, pa.int32()))


BROKEN: dict[str, Breaker] = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "empty manifest": manifest_text(lambda text: ""),
    "torn manifest": manifest_text(lambda text: text[: len(text) // 2]),
    "a list as manifest": manifest_text(lambda text: "[]"),
    "a manifest that is not UTF-8": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe{}"),
    "a key twice": manifest_text(lambda text: text.replace('"model":', '"model": "x", "model":', 1)),
    "NaN": manifest_text(lambda text: text.replace('"seed": 3', '"seed": NaN')),
    "an infinite number": manifest_text(lambda text: text.replace('"seed": 3', '"seed": 1e999')),
    "a nested manifest": manifest_text(lambda text: "[" * 100_000),
    "a format of the future": change_manifest(lambda m: m.update(format_version=2)),
    "an unknown field": change_manifest(lambda m: m.update(variant={})),
    "a missing field": change_manifest(lambda m: m.pop("n_items")),
    "a field of a wrong type": change_manifest(lambda m: m.update(n_items="1000")),
    "no items": change_manifest(lambda m: m.update(n_items=0)),
    "a default variant that is not there": change_manifest(lambda m: m.update(default_variant="int8")),
    "a graph that is not listed": change_manifest(lambda m: m["files"].pop(GRAPH)),
    "vectors that are not listed": change_manifest(lambda m: m["files"].pop(layout.ITEM_EMBEDDINGS)),
    "a path that leaves": change_manifest(lambda m: m["files"].update({"../x": m["files"][GRAPH]})),
    "an absolute path": change_manifest(lambda m: m["files"].update({"/etc/passwd": m["files"][GRAPH]})),
    "a backslash": change_manifest(lambda m: m["files"].update({"a\\b": m["files"][GRAPH]})),
    "a digest that is no digest": change_manifest(lambda m: m["files"][GRAPH].update(sha256="0")),
    "an unknown feature": change_manifest(lambda m: m["inputs"].update(features=["history", "age"])),
    "more items than there are": change_manifest(lambda m: m.update(n_items=1001)),
    "another embedding size": change_manifest(lambda m: m.update(embedding_size=8)),
    "a history longer than the graph takes": change_manifest(lambda m: m["inputs"].update(max_history=13)),
    "a missing file": lambda folder: (folder / layout.ITEMS).unlink(),
    "an extra file": lambda folder: (folder / "readme.txt").write_text("hello"),
    "an extra file in a folder": lambda folder: (folder / "variants" / "x").write_text("hello"),
    "a truncated graph": lambda folder: os.truncate(folder / GRAPH, 100),
    "a longer file": lambda folder: (folder / GRAPH).write_bytes((folder / GRAPH).read_bytes() + b"x"),
    **{f"one bit of {name}": flip(name) for name in (GRAPH, GOLDEN, layout.ITEMS, layout.POPULARITY)},
    **{f"one bit of {name}": flip(name) for name in (layout.ITEM_EMBEDDINGS, layout.HISTORIES)},
    "random bytes as graph": sealed(GRAPH, lambda path: path.write_bytes(bytes(range(256)) * 2) and None),
    "an empty graph": sealed(GRAPH, lambda path: path.write_bytes(b"")),
    "a cut graph with its digest": sealed(GRAPH, lambda path: path.write_bytes(path.read_bytes()[:-500])),
    "other inputs": graph(rename_input),
    "an unknown operator": graph(lambda proto: setattr(proto.graph.node[0], "op_type", "NoSuchOperator")),
    "outputs that differ": golden_of(lambda arrays: arrays[layout.QUERY_EMBEDDING_OUTPUT].__iadd__(0.1)),
    "recorded NaN": golden_of(lambda arrays: arrays[layout.QUERY_EMBEDDING_OUTPUT].fill(np.nan)),
    "no recorded output": golden_of(lambda arrays: arrays.pop(layout.QUERY_EMBEDDING_OUTPUT)),
    "junk as recorded inference": sealed(GOLDEN, lambda path: path.write_bytes(b"junk")),
    "NaN in the vectors": array(layout.ITEM_EMBEDDINGS, lambda a: np.where(a == a[3, 3], np.nan, a)),
    "vectors of double precision": array(layout.ITEM_EMBEDDINGS, lambda a: a.astype(np.float64)),
    "fewer vectors": array(layout.ITEM_EMBEDDINGS, lambda a: a[:-1]),
    "vectors in Fortran order": array(layout.ITEM_EMBEDDINGS, np.asfortranarray),
    "pickled counts": array(layout.POPULARITY, lambda a: np.array([{"a": 1}] * len(a), object)),
    "a pickle as counts": sealed(layout.POPULARITY, lambda path: path.write_bytes(pickle.dumps([1]))),
    "negative counts": array(layout.POPULARITY, lambda a: -a - 1),
    "fewer counts": array(layout.POPULARITY, lambda a: a[1:]),
    "cut columns": sealed(layout.ITEMS, lambda path: os.truncate(path, path.stat().st_size // 2)),
    "items without ids": table(layout.ITEMS, lambda t: t.drop_columns(["item_id"])),
    "ids of another type": table(layout.ITEMS, column("item_id", lambda c: pa.array(range(len(c))))),
    "an id twice": table(layout.ITEMS, column("item_id", lambda c: pa.array(["x"] * len(c), c.type))),
    "an id that is null": table(
        layout.ITEMS, column("item_id", lambda c: pa.array([None, *c.to_pylist()[1:]], c.type))
    ),
    "a lookup of other ids": table(
        layout.ITEM_LOOKUP, column("hash", lambda c: pa.array(np.sort(c.to_numpy() ^ np.uint64(1 << 40))))
    ),
    "a lookup that points outside": table(
        layout.ITEM_LOOKUP, column("row", lambda c: pa.array(c.to_numpy() + np.int32(1)))
    ),
    "a lookup out of order": table(layout.ITEM_LOOKUP, lambda t: t.take(list(range(t.num_rows))[::-1])),
    "histories of unknown items": table(layout.HISTORIES, column("items", shifted)),
    "histories without times": table(layout.HISTORIES, lambda t: t.drop_columns(["timestamps"])),
    "a symbolic link": replaced_by(lambda path: path.symlink_to(path.parent.parent / "elsewhere.npy")),
    "a hard link": replaced_by(lambda path: path.hardlink_to(path.parent.parent / "elsewhere.npy")),
    "a pipe": replaced_by(lambda path: os.mkfifo(path)),
    "a folder in place of a file": replaced_by(lambda path: path.mkdir()),
}


@pytest.mark.parametrize("breaker", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_bundle_is_refused_in_one_sentence(
    breaker: Breaker, bundle_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_folder, folder)
    breaker(folder)
    with pytest.raises(BundleInvalid) as caught:
        Engine.load(folder)
    sentence = str(caught.value)
    assert " is " in sentence
    assert "; expected " in sentence
    assert "\n" not in sentence
    assert len(sentence) < 400


def test_an_unbroken_copy_is_served(bundle_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_folder, tmp_path / "bundle")
    Engine.load(tmp_path / "bundle").close()


@pytest.mark.parametrize("path", ["no such folder", "."])
def test_what_is_no_bundle_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="Check the path"):
        Engine.load(tmp_path / path)
