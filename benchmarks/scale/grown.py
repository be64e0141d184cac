"""A bundle with more items than it was trained on; model and users stay, so that only the size differs."""

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle, BundleWriter, Vocabulary, layout, open_bundle
from recserve.engine.bundle.catalogue import ITEM_ID
from recserve.engine.bundle.item_table import FLOAT32
from recserve.engine.bundle.manifest import TABLE
from recserve.engine.user_table import Folder
from recserve.errors import InvalidRequest


def grow_bundle(source: Path, target: Path, n_items: int, seed: int) -> None:
    """Writes the bundle ``source`` to ``target`` with items added up to ``n_items``.

    An added item has the direction between two of the catalogue and the norm of a third, so that the norms
    and the spectrum of the catalogue stay; its attributes and popularity are those of a random one. Only the
    default variant goes along and no ranker, whose graph holds a table of the items that it knows.
    """
    bundle = open_bundle(source)
    if bundle.manifest.item_table != FLOAT32:
        raise InvalidRequest("bundle", found=f"with items in {bundle.manifest.item_table}", expected=FLOAT32)
    n_added = n_items - bundle.manifest.n_items
    if n_added < 0:
        raise InvalidRequest("--items", found=n_items, expected=f"{bundle.manifest.n_items} or more")
    rng = np.random.default_rng(seed)
    like = rng.integers(0, bundle.manifest.n_items, n_added)
    name = bundle.manifest.default_variant
    with BundleWriter(target) as writer:
        vectors = np.concatenate([bundle.item_embeddings, _between(bundle.item_embeddings, n_added, rng)])
        writer.add_array(layout.ITEM_EMBEDDINGS, vectors)
        popularity = np.concatenate([bundle.popularity, bundle.popularity[like]])
        writer.add_array(layout.POPULARITY, popularity)
        _add_items(writer, source, like)
        entry = bundle.manifest.variants[name]
        _copy_users(writer, bundle, with_table=entry.query == TABLE)
        golden = bundle.read(entry.golden)
        if entry.fold_in is not None:
            folder = Folder(vectors, bundle.manifest.inputs.max_history, entry.fold_in)
            golden = _recorded_again(golden, folder)
        elif entry.query != TABLE:
            for graph in entry.graphs:
                writer.add_bytes(graph, _graph_over(bundle.read(graph), writer))
        writer.add_bytes(entry.golden, golden)
        manifest = dataclasses.replace(
            bundle.manifest,
            bundle_version=f"{bundle.manifest.bundle_version}-{n_items}",
            n_items=n_items,
            variants={name: entry},
            refused={},
            ranker=None,
            item_encoder=None,
            inputs=dataclasses.replace(bundle.manifest.inputs, context=[]),
            files=writer.files,
        )
        writer.commit(manifest)


def _between(vectors: NDArray[np.float32], n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    first, second, third = rng.integers(0, len(vectors), (3, n))
    norms = np.linalg.norm(vectors, axis=1)
    made: NDArray[np.float32] = vectors[first] + vectors[second]
    made *= (norms[third] / np.maximum(np.linalg.norm(made, axis=1), 1e-30))[:, None]
    return made


def _add_items(writer: BundleWriter, source: Path, like: NDArray[np.int64]) -> None:
    with pa.OSFile(str(source / layout.ITEMS)) as file:
        items = pa.ipc.open_file(file).read_all()
    own = items.column(ITEM_ID).to_pylist()
    ids = [*own, *(f"added item {i}" for i in range(len(like)))]
    column = pa.array(ids, pa.large_string())
    table = pa.concat_tables([items, items.take(pa.array(like))])
    writer.add_table(layout.ITEMS, table.set_column(table.column_names.index(ITEM_ID), ITEM_ID, column))
    writer.add_table(layout.ITEM_LOOKUP, Vocabulary.build(ids).lookup_table())


def _copy_users(writer: BundleWriter, bundle: Bundle, *, with_table: bool) -> None:
    for name in (layout.HISTORIES, layout.USER_LOOKUP, *([layout.USER_EMBEDDINGS] if with_table else [])):
        if name in bundle.manifest.files:
            shutil.copyfile(bundle.folder / name, writer.path(name))
            writer.seal(name)


def _recorded_again(golden: bytes, folder: Folder) -> bytes:
    """Returns the record with the fold-ins of the larger catalogue: all items have a part in them."""
    with np.load(io.BytesIO(golden), allow_pickle=False) as recorded:
        record = dict(recorded)
    record[layout.QUERY_EMBEDDING_OUTPUT] = folder.fold_padded(record[layout.HISTORY_INPUT])
    file = io.BytesIO()
    np.savez(file, **record)
    return file.getvalue()


def _graph_over(graph: bytes, writer: BundleWriter) -> bytes:
    """Returns the graph with the item table that was just written; it says its shape and place itself."""
    table = np.load(writer.path(layout.ITEM_EMBEDDINGS), mmap_mode="r")
    model = onnx.load_model_from_string(graph)
    [tensor] = [one for one in model.graph.initializer if one.name == layout.ITEM_EMBEDDINGS_INITIALIZER]
    tensor.dims[0] = len(table)
    for part in tensor.external_data:
        if part.key in ("offset", "length"):
            part.value = str(table.offset if part.key == "offset" else table.nbytes)
    data: bytes = model.SerializeToString()
    return data
