"""Opens a bundle after checking every byte of it; large parts stay memory-mapped."""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recserve.engine.bundle import layout
from recserve.engine.bundle.catalogue import ITEM_ID, Catalogue
from recserve.engine.bundle.histories import HISTORY_COLUMNS, StoredHistories
from recserve.engine.bundle.manifest import MANIFEST_NAME, TABLE, FileEntry, Manifest
from recserve.engine.bundle.vocabulary import LOOKUP_COLUMNS, Vocabulary
from recserve.engine.bundle.writer import sha256_of
from recserve.errors import BundleInvalid

Scalar = TypeVar("Scalar", bound=np.generic)
EXPORT_AGAIN = "Export the bundle again."


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle. Arrays are read-only memory maps.

    ``item_embeddings``: (n_items, embedding_size) float32; ``popularity``: (n_items,) int64 counts;
    ``user_embeddings``: (n_users, embedding_size) float32, row i of user i of ``histories``, where a variant
    is a table.
    """

    folder: Path
    manifest: Manifest
    catalogue: Catalogue
    histories: StoredHistories
    item_embeddings: NDArray[np.float32]
    popularity: NDArray[np.int64]
    user_embeddings: NDArray[np.float32] | None = None

    def array(self, name: str, dtype: np.dtype[Scalar], shape: tuple[int, ...]) -> NDArray[Scalar]:
        """Maps the array of a listed file; raises :class:`BundleInvalid` for another type or shape."""
        return _map_array(self.folder, name, dtype, shape)

    def read(self, name: str) -> bytes:
        """Returns the bytes of a listed file, checked against the manifest as they were read."""
        data = _read(self.folder / name, name)
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
            raise BundleInvalid(f"file {name}", found="changed since it was checked", expected="unchanged")
        return data


def open_bundle(folder: str | Path) -> Bundle:
    """Checks and opens the bundle in ``folder``.

    Raises :class:`BundleInvalid` when a file is missing, extra, changed or not consistent with the rest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    for name in (layout.ITEMS, layout.ITEM_LOOKUP, layout.ITEM_EMBEDDINGS, layout.POPULARITY):
        _require(manifest, name)
    items = _map_table(folder, layout.ITEMS, {ITEM_ID: pa.large_string()})
    _check_rows(layout.ITEMS, items.num_rows, manifest.n_items)
    vocabulary = _vocabulary(folder, items.column(ITEM_ID), layout.ITEMS, layout.ITEM_LOOKUP)
    shape = (manifest.n_items, manifest.embedding_size)
    histories = _open_histories(folder, manifest)
    bundle = Bundle(
        folder=folder,
        manifest=manifest,
        catalogue=Catalogue(items, vocabulary),
        histories=histories,
        item_embeddings=_map_array(folder, layout.ITEM_EMBEDDINGS, np.dtype(np.float32), shape),
        popularity=_map_array(folder, layout.POPULARITY, np.dtype(np.int64), shape[:1]),
        user_embeddings=_open_user_embeddings(folder, manifest, len(histories)),
    )
    _check_finite(layout.ITEM_EMBEDDINGS, bundle.item_embeddings)
    if bundle.popularity.min() < 0:
        raise BundleInvalid(
            layout.POPULARITY, found=int(bundle.popularity.min()), expected="counts of 0 or more"
        )
    return bundle


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest alone, without checking the files that it names."""
    path = folder / MANIFEST_NAME
    # Not through a link, and not blocked by a pipe that nobody writes to.
    if path.is_symlink() or not path.is_file():
        raise BundleInvalid(
            f"bundle {folder}",
            found="a folder without a file manifest.json" if folder.is_dir() else "not a folder",
            expected="a folder that `recserve export` wrote",
            cure="Check the path.",
        )
    try:
        return Manifest.from_json(_read(path, MANIFEST_NAME).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BundleInvalid(MANIFEST_NAME, found="not UTF-8", expected="JSON", cure=EXPORT_AGAIN) from error


def _check_files(folder: Path, manifest: Manifest) -> None:
    present = set(_files_in(folder)) - {MANIFEST_NAME}
    for name in sorted(present - set(manifest.files)):
        raise BundleInvalid(f"file {name}", found="in the bundle", expected="only files of the manifest")
    for name, entry in sorted(manifest.files.items()):
        if name not in present:
            raise BundleInvalid(f"file {name}", found="missing", expected="present", cure=EXPORT_AGAIN)
        _check_file(folder / name, name, entry)


def _files_in(folder: Path) -> Iterator[str]:
    """Yields the path of everything in ``folder`` but folders; a link to a folder counts as a file."""
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        for name in [*names, *links]:
            yield str(Path(root, name).relative_to(folder))


def _check_file(path: Path, name: str, entry: FileEntry) -> None:
    status = path.lstat()
    # A link, of either kind, or a pipe could point outside the bundle or change under us.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise BundleInvalid(
            f"file {name}",
            found="a link or special file",
            expected="a regular file with one name",
            cure="Copy the bundle without links.",
        )
    if status.st_size != entry.size_bytes:
        raise BundleInvalid(
            f"size of {name}",
            found=f"{status.st_size} bytes",
            expected=f"{entry.size_bytes} bytes",
            cure=EXPORT_AGAIN,
        )
    try:
        found = sha256_of(path)
    except OSError as error:
        raise _unreadable(name, error) from error
    if found != entry.sha256:
        raise BundleInvalid(
            f"SHA-256 of {name}", found=found[:12] + "…", expected=entry.sha256[:12] + "…", cure=EXPORT_AGAIN
        )


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError) -> BundleInvalid:
    return BundleInvalid(f"file {name}", found=f"not readable ({error.strerror})", expected="readable")


def _require(manifest: Manifest, name: str) -> None:
    if name not in manifest.files:
        raise BundleInvalid(f"file {name}", found="not listed", expected="in every bundle", cure=EXPORT_AGAIN)


def _check_rows(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise BundleInvalid(f"rows of {name}", found=found, expected=str(expected), cure=EXPORT_AGAIN)


def _map_table(folder: Path, name: str, columns: dict[str, pa.DataType]) -> pa.Table:
    """Maps an Arrow file; ``columns`` must be there, of these types and without nulls."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(folder / name))).read_all()
        # Arrow trusts what it maps: an offset or an index out of range would read foreign memory.
        table.validate(full=True)
        names = table.column_names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BundleInvalid(f"file {name}", found="unreadable", expected="an Arrow file") from error
    for column in names:
        if names.count(column) > 1:
            raise BundleInvalid(f"column {column} of {name}", found="there twice", expected="there once")
    for column, kind in columns.items():
        if column not in names:
            raise BundleInvalid(f"column {column} of {name}", found="missing", expected="present")
        found = table.schema.field(column).type
        if found != kind:
            raise BundleInvalid(f"column {column} of {name}", found=str(found), expected=str(kind))
        if _has_nulls(table.column(column)):
            raise BundleInvalid(f"column {column} of {name}", found="with nulls", expected="without nulls")
    return table


def _has_nulls(column: pa.ChunkedArray) -> bool:
    if column.null_count:
        return True
    return pa.types.is_large_list(column.type) and any(chunk.values.null_count for chunk in column.chunks)


def _map_array(folder: Path, name: str, dtype: np.dtype[Scalar], shape: tuple[int, ...]) -> NDArray[Scalar]:
    try:
        # Not np.load: it also opens archives, and knows more ways to fail.
        array = np.lib.format.open_memmap(folder / name, mode="r")
    except (ValueError, OSError, OverflowError, TypeError) as error:
        raise BundleInvalid(f"file {name}", found="unreadable", expected="a .npy array") from error
    if array.shape != shape:
        raise BundleInvalid(f"shape of {name}", found=array.shape, expected=str(shape), cure=EXPORT_AGAIN)
    if array.dtype != dtype or not array.flags.c_contiguous:
        order = "C" if array.flags.c_contiguous else "Fortran"
        raise BundleInvalid(
            f"layout of {name}", found=f"{array.dtype.str}, {order} order", expected=f"{dtype.str}, C order"
        )
    return array


def _check_finite(name: str, array: NDArray[np.float32]) -> None:
    if not np.isfinite(array).all():
        raise BundleInvalid(name, found="NaN or infinite", expected="finite numbers")


def _open_user_embeddings(folder: Path, manifest: Manifest, n_users: int) -> NDArray[np.float32] | None:
    if all(variant.query != TABLE for variant in manifest.variants.values()):
        return None
    shape = (n_users, manifest.embedding_size)
    table = _map_array(folder, layout.USER_EMBEDDINGS, np.dtype(np.float32), shape)
    _check_finite(layout.USER_EMBEDDINGS, table)
    return table


def _vocabulary(folder: Path, ids: pa.ChunkedArray, ids_file: str, lookup_file: str) -> Vocabulary:
    lookup = _map_table(folder, lookup_file, LOOKUP_COLUMNS)
    _check_rows(lookup_file, lookup.num_rows, len(ids))
    vocabulary = Vocabulary(
        ids.combine_chunks(),
        lookup.column("hash").combine_chunks().to_numpy(),
        lookup.column("row").combine_chunks().to_numpy(),
    )
    vocabulary.check(ids_file, lookup_file)
    return vocabulary


def _open_histories(folder: Path, manifest: Manifest) -> StoredHistories:
    _require(manifest, layout.HISTORIES)
    _require(manifest, layout.USER_LOOKUP)
    table = _map_table(folder, layout.HISTORIES, HISTORY_COLUMNS)
    vocabulary = _vocabulary(folder, table.column("user_id"), layout.HISTORIES, layout.USER_LOOKUP)
    histories = StoredHistories(table, vocabulary)
    histories.check(layout.HISTORIES, manifest.n_items)
    return histories
