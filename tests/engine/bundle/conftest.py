"""A bundle to break: a copy of the shared one, with the tools that keep its digests right."""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from recserve.engine import Engine
from recserve.errors import BundleInvalid, BundleReason

GRAPH = "variants/fp32/query_encoder.onnx"
GOLDEN = "variants/fp32/golden.npz"
VECTORS, POPULARITY = "item_embeddings.npy", "popularity.npy"
ITEMS, ITEM_LOOKUP = "items.arrow", "item_lookup.arrow"
HISTORIES, USER_LOOKUP = "histories.arrow", "user_lookup.arrow"
FILES = (GRAPH, GOLDEN, VECTORS, POPULARITY, ITEMS, ITEM_LOOKUP, HISTORIES, USER_LOOKUP)


class BundleCopy:
    """A private copy of a bundle. What is written through it has a correct size and SHA-256 again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest_path = folder / "manifest.json"

    def manifest(self) -> dict[str, Any]:
        return json.loads(self.manifest_path.read_text())  # type: ignore[no-any-return]

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        manifest = self.manifest()
        change(manifest)
        self.manifest_path.write_text(json.dumps(manifest))

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)
        entry = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.edit(lambda manifest: manifest["files"].update({name: entry}))

    def flip_bit(self, name: str) -> None:
        data = bytearray(self.read(name))
        data[len(data) // 2] ^= 1
        (self.folder / name).write_bytes(data)

    def array(self, name: str) -> Any:
        return np.load(self.folder / name)

    def write_array(self, name: str, array: Any, *, allow_pickle: bool = False) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=allow_pickle)
        self.write(name, buffer.getvalue())

    def table(self, name: str) -> pa.Table:
        with pa.OSFile(str(self.folder / name)) as file:
            return pa.ipc.open_file(file).read_all()

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, table.schema) as out:
            out.write_table(table)
        self.write(name, sink.getvalue())

    def set_column(self, name: str, column: str, values: Any) -> None:
        table = self.table(name)
        self.write_table(name, table.set_column(table.column_names.index(column), column, values))

    def write_golden(self, change: Callable[[dict[str, Any]], object], *, compressed: bool = False) -> None:
        name = GOLDEN
        with np.load(self.folder / name) as archive:
            arrays = dict(archive)
        change(arrays)
        buffer = io.BytesIO()
        (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
        self.write(name, buffer.getvalue())


Break = Callable[[BundleCopy], object]


class Case(NamedTuple):
    """One way to break a bundle, the reason of its refusal, and what must stand in the sentence."""

    reason: BundleReason
    names: str
    change: Break


class Cases(dict[str, Case]):
    """A table of cases by label; a module fills it, one test runs it."""

    def add(self, label: str, reason: BundleReason, names: str, change: Break) -> None:
        assert label not in self
        self[label] = Case(reason, names, change)

    def broken(self, reason: BundleReason, names: str) -> Callable[[Break], Break]:
        """Adds the function below it under its name."""

        def register(change: Break) -> Break:
            self.add(change.__name__, reason, names, change)
            return change

        return register


@pytest.fixture
def bundle(bundle_folder: Path, tmp_path: Path) -> BundleCopy:
    return BundleCopy(shutil.copytree(bundle_folder, tmp_path / "bundle"))


def refused(bundle: BundleCopy, case: Case) -> None:
    """Breaks ``bundle`` and asserts that it is refused, for the reason of ``case``, in one short sentence."""
    case.change(bundle)
    with pytest.raises(BundleInvalid) as caught:
        Engine.load(bundle.folder)
    sentence = str(caught.value)
    assert case.names in sentence
    assert caught.value.reason is case.reason
    assert re.fullmatch(r"[^\n]+ is [^\n]+; expected [^\n]+\.( [A-Z][^\n]*[.?])?", sentence)
    assert len(sentence) < 350
    assert caught.value.exit_code == 5
