"""Opens a bundle after checking every byte of it; large parts stay memory-mapped."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recserve.engine.bundle import layout
from recserve.engine.bundle.catalogue import ITEM_ID, Catalogue
from recserve.engine.bundle.graph_check import check_graph
from recserve.engine.bundle.histories import HISTORY_COLUMNS, VALUES_COLUMN, StoredHistories
from recserve.engine.bundle.item_encoder import ItemEncoder
from recserve.engine.bundle.item_table import FORMS, Parts, check_finite, unpack
from recserve.engine.bundle.manifest import MANIFEST_NAME, TABLE, Manifest
from recserve.engine.bundle.plain_files import EXPORT_AGAIN, check_file, files_in, not_plain, read_plain
from recserve.engine.bundle.shards import files_of, joined
from recserve.engine.bundle.signatures import (
    SIGNATURES_NAME,
    SignaturePolicy,
    Trust,
    add_signature,
    check_signatures,
)
from recserve.engine.bundle.signing_keys import SigningKey
from recserve.engine.bundle.stamps import Stamps, stamps_of
from recserve.engine.bundle.vocabulary import LOOKUP_COLUMNS, Vocabulary
from recserve.errors import BundleInvalid, BundleReason

Scalar = TypeVar("Scalar", bound=np.generic)
# A hundred thousand files have room.
MAX_MANIFEST_BYTES = 16 << 20
UNCHECKED = SignaturePolicy()


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle. Arrays are read-only memory maps.

    ``item_embeddings``: (n_items, embedding_size) float32, the map itself or, of a smaller item table, what
    its stored ``item_parts`` say; ``popularity``: (n_items,) int64 counts;
    ``user_embeddings``: (n_users, embedding_size) float32, row i of user i of ``histories``, where a variant
    is a table; ``item_encoder``: what makes an embedding of an item's attributes, where the bundle has it.
    """

    folder: Path
    manifest: Manifest
    catalogue: Catalogue
    histories: StoredHistories
    item_embeddings: NDArray[np.float32]
    item_parts: Parts
    popularity: NDArray[np.int64]
    user_embeddings: NDArray[np.float32] | None = None
    trust: Trust = field(default_factory=Trust)
    item_encoder: ItemEncoder | None = None

    def array(self, name: str, dtype: np.dtype[Scalar], shape: tuple[int, ...]) -> NDArray[Scalar]:
        """Maps the array of a listed file; raises :class:`BundleInvalid` for another type or shape."""
        return _map_array(self.folder, name, dtype, shape)

    def read(self, name: str) -> bytes:
        """Returns the bytes of a listed file, checked against the manifest as they were read."""
        entry = self.manifest.files[name]
        data = read_plain(self.folder / name, name, entry.size_bytes)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleInvalid(
                f"file {name}",
                found="changed since it was checked",
                expected="unchanged",
                reason=BundleReason.FILE_DIGEST,
            )
        return data


def open_bundle(
    folder: str | Path, signatures: SignaturePolicy = UNCHECKED, checked: Stamps | None = None
) -> Bundle:
    """Checks and opens the bundle in ``folder``.

    ``checked``: the stamps of files that this function checked before, in another process perhaps; while
    they are those of the files now, digests and contents are not looked at again.
    Raises :class:`BundleInvalid` when a file is missing, extra, changed or not consistent with the rest, or
    its signature is not what ``signatures`` requires.
    """
    folder = Path(folder)
    is_checked = checked is not None and checked == stamps_of(folder)
    data = read_manifest_bytes(folder)
    # Before anything of it is parsed.
    trust = check_signatures(folder, data, signatures)
    manifest = _parse(data)
    if not is_checked:
        _check_files(folder, manifest)
    bundle = _map_bundle(folder, manifest, trust, validate=not is_checked)
    if not is_checked:
        _check_content(bundle)
    return bundle


def _map_bundle(folder: Path, manifest: Manifest, trust: Trust, *, validate: bool) -> Bundle:
    """Maps the files, whose columns, types and shapes must be those of the manifest."""
    table = FORMS[manifest.item_table]
    vectors = (part.file for part in table.values())
    for name in (layout.ITEMS, layout.ITEM_LOOKUP, *vectors, layout.POPULARITY):
        _require(manifest, name)
    items = _map_table(folder, layout.ITEMS, {ITEM_ID: pa.large_string()}, validate=validate)
    _check_rows(layout.ITEMS, items.num_rows, manifest.n_items)
    vocabulary = _vocabulary(folder, items.column(ITEM_ID), layout.ITEM_LOOKUP, validate=validate)
    shape = (manifest.n_items, manifest.embedding_size)
    histories = _open_histories(folder, manifest, validate=validate)
    parts = {
        name: _map_rows(folder, manifest, part.file, part.dtype, part.shape(*shape))
        for name, part in table.items()
    }
    return Bundle(
        folder=folder,
        manifest=manifest,
        catalogue=Catalogue(items, vocabulary),
        histories=histories,
        item_embeddings=unpack(parts),
        item_parts=parts,
        popularity=_map_array(folder, layout.POPULARITY, np.dtype(np.int64), shape[:1]),
        user_embeddings=_open_user_embeddings(folder, manifest, len(histories)),
        trust=trust,
        item_encoder=_open_item_encoder(folder, manifest),
    )


def _check_content(bundle: Bundle) -> None:
    manifest = bundle.manifest
    bundle.catalogue.vocabulary.check(layout.ITEMS, layout.ITEM_LOOKUP)
    bundle.histories.vocabulary.check(layout.HISTORIES, layout.USER_LOOKUP)
    bundle.histories.check(layout.HISTORIES, manifest.n_items)
    check_finite(next(iter(FORMS[manifest.item_table].values())).file, bundle.item_embeddings)
    if bundle.user_embeddings is not None:
        check_finite(layout.USER_EMBEDDINGS, bundle.user_embeddings)
    if manifest.item_encoder is not None and bundle.item_encoder is not None:
        check_finite(manifest.item_encoder.file, bundle.item_encoder.weights)
    if bundle.popularity.min() < 0:
        raise BundleInvalid(
            layout.POPULARITY,
            found=int(bundle.popularity.min()),
            expected="counts of 0 or more",
            reason=BundleReason.VALUE_RANGE,
        )
    _check_graphs(bundle)


def sign_bundle(folder: Path, key: SigningKey) -> None:
    """Checks the bundle in ``folder`` and adds the signature of ``key``."""
    data = read_manifest_bytes(folder)
    open_bundle(folder)
    add_signature(folder, data, key)


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest alone, without checking the files that it names, nor who signed it."""
    return _parse(read_manifest_bytes(folder))


def read_manifest_bytes(folder: Path) -> bytes:
    """Returns the manifest as it lies on disk, what signatures are about."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise BundleInvalid(
            f"bundle {folder}",
            found="a folder without a file manifest.json" if folder.is_dir() else "not a folder",
            expected="a folder that `recserve export` wrote",
            cure="Check the path.",
            reason=BundleReason.MANIFEST_MISSING,
        )
    return read_plain(path, MANIFEST_NAME, MAX_MANIFEST_BYTES)


def _parse(data: bytes) -> Manifest:
    try:
        return Manifest.from_json(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BundleInvalid(
            MANIFEST_NAME,
            found="not UTF-8",
            expected="JSON",
            cure=EXPORT_AGAIN,
            reason=BundleReason.MANIFEST_MALFORMED,
        ) from error


def _open_item_encoder(folder: Path, manifest: Manifest) -> ItemEncoder | None:
    entry = manifest.item_encoder
    if entry is None:
        return None
    shape = (entry.width + 1, manifest.embedding_size)
    return ItemEncoder(entry, _map_array(folder, entry.file, np.dtype(np.float32), shape))


def _check_files(folder: Path, manifest: Manifest) -> None:
    present = set(files_in(folder)) - {MANIFEST_NAME, SIGNATURES_NAME}
    for name in sorted(present - set(manifest.files)):
        if (folder / name).is_symlink():
            raise not_plain(name)
        raise BundleInvalid(
            f"file {name}",
            found="in the bundle",
            expected="only files of the manifest",
            reason=BundleReason.FILE_UNLISTED,
        )
    for name, entry in sorted(manifest.files.items()):
        if name not in present:
            raise BundleInvalid(
                f"file {name}",
                found="missing",
                expected="present",
                cure=EXPORT_AGAIN,
                reason=BundleReason.FILE_MISSING,
            )
        check_file(folder / name, name, entry)


def _check_graphs(bundle: Bundle) -> None:
    manifest = bundle.manifest
    shape = (manifest.n_items, manifest.embedding_size)
    for graph in {graph for variant in manifest.variants.values() for graph in variant.graphs}:
        check_graph(bundle.read(graph), graph, FORMS[manifest.item_table], shape)
    alone = (manifest.ranker, manifest.text_encoder)
    for graph in (part.graph for part in alone if part is not None and part.graph):
        check_graph(bundle.read(graph), graph)


def _require(manifest: Manifest, name: str) -> None:
    if name not in manifest.files:
        raise BundleInvalid(
            f"file {name}",
            found="not listed",
            expected="in every bundle",
            cure=EXPORT_AGAIN,
            reason=BundleReason.FILE_MISSING,
        )


def _check_rows(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise BundleInvalid(
            f"rows of {name}",
            found=found,
            expected=str(expected),
            cure=EXPORT_AGAIN,
            reason=BundleReason.SHAPE,
        )


def _map_table(
    folder: Path,
    name: str,
    columns: Mapping[str, pa.DataType],
    optional: Mapping[str, pa.DataType] = MappingProxyType({}),
    *,
    validate: bool,
) -> pa.Table:
    """Maps an Arrow file; ``columns`` must be there, these and ``optional`` of their types, without nulls."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(folder / name))).read_all()
        if validate:
            # Arrow trusts what it maps: an offset or an index out of range would read foreign memory.
            table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        # A log that shows the variables of a traceback would read foreign memory too.
        table = None
        raise BundleInvalid(
            f"file {name}",
            found="unreadable",
            expected="an Arrow file",
            reason=BundleReason.CONTENT_MALFORMED,
        ) from error
    names = table.column_names
    for column in names:
        if names.count(column) > 1:
            raise BundleInvalid(
                f"column {column} of {name}",
                found="there twice",
                expected="there once",
                reason=BundleReason.TABLE_COLUMNS,
            )
    for column, kind in {**columns, **optional}.items():
        if column not in names and column in optional:
            continue
        if column not in names:
            raise BundleInvalid(
                f"column {column} of {name}",
                found="missing",
                expected="present",
                reason=BundleReason.TABLE_COLUMNS,
            )
        found = table.schema.field(column).type
        if found != kind:
            raise BundleInvalid(
                f"column {column} of {name}",
                found=str(found),
                expected=str(kind),
                reason=BundleReason.TABLE_COLUMNS,
            )
        if _has_nulls(table.column(column)):
            raise BundleInvalid(
                f"column {column} of {name}",
                found="with nulls",
                expected="without nulls",
                reason=BundleReason.TABLE_COLUMNS,
            )
    return table


def _has_nulls(column: pa.ChunkedArray) -> bool:
    if column.null_count:
        return True
    return pa.types.is_large_list(column.type) and any(chunk.values.null_count for chunk in column.chunks)


def _map_rows(
    folder: Path, manifest: Manifest, name: str, dtype: np.dtype[Scalar], shape: tuple[int, int]
) -> NDArray[Scalar]:
    """As :func:`_map_array`, of a table that may lie in several files."""
    names = files_of(name, manifest.files)
    if names == [name]:
        return _map_array(folder, name, dtype, shape)
    shards = [_open_map(folder, one) for one in names]
    for one, shard in zip(names, shards, strict=True):
        _check_layout(one, shard, dtype, (*shard.shape[:1], *shape[1:]))
    _check_rows(name, sum(map(len, shards)), shape[0])
    return joined(shards)


def _map_array(folder: Path, name: str, dtype: np.dtype[Scalar], shape: tuple[int, ...]) -> NDArray[Scalar]:
    array = _open_map(folder, name)
    _check_layout(name, array, dtype, shape)
    # Of a memory map every slice would be a map again, at ten times the cost.
    return np.asarray(array)


def _open_map(folder: Path, name: str) -> np.memmap[Any, Any]:
    try:
        # Not np.load: it also opens archives, and knows more ways to fail.
        return np.lib.format.open_memmap(folder / name, mode="r")
    except (ValueError, OSError, OverflowError, TypeError) as error:
        raise BundleInvalid(
            f"file {name}", found="unreadable", expected="a .npy array", reason=BundleReason.CONTENT_MALFORMED
        ) from error


def _check_layout(name: str, array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise BundleInvalid(
            f"shape of {name}",
            found=array.shape,
            expected=str(shape),
            cure=EXPORT_AGAIN,
            reason=BundleReason.SHAPE,
        )
    if array.dtype != dtype or not array.flags.c_contiguous:
        order = "C" if array.flags.c_contiguous else "Fortran"
        raise BundleInvalid(
            f"layout of {name}",
            found=f"{array.dtype.str}, {order} order",
            expected=f"{dtype.str}, C order",
            reason=BundleReason.ARRAY_TYPE,
        )


def _open_user_embeddings(folder: Path, manifest: Manifest, n_users: int) -> NDArray[np.float32] | None:
    if all(variant.query != TABLE for variant in manifest.variants.values()):
        return None
    shape = (n_users, manifest.embedding_size)
    return _map_rows(folder, manifest, layout.USER_EMBEDDINGS, np.dtype(np.float32), shape)


def _vocabulary(folder: Path, ids: pa.ChunkedArray, lookup_file: str, *, validate: bool) -> Vocabulary:
    lookup = _map_table(folder, lookup_file, LOOKUP_COLUMNS, validate=validate)
    _check_rows(lookup_file, lookup.num_rows, len(ids))
    return Vocabulary(
        ids.combine_chunks(),
        lookup.column("hash").combine_chunks().to_numpy(),
        lookup.column("row").combine_chunks().to_numpy(),
    )


def _open_histories(folder: Path, manifest: Manifest, *, validate: bool) -> StoredHistories:
    _require(manifest, layout.HISTORIES)
    _require(manifest, layout.USER_LOOKUP)
    columns = {VALUES_COLUMN: pa.large_list(pa.float32())}
    table = _map_table(folder, layout.HISTORIES, HISTORY_COLUMNS, columns, validate=validate)
    user_ids = table.column("user_id")
    return StoredHistories(table, _vocabulary(folder, user_ids, layout.USER_LOOKUP, validate=validate))
