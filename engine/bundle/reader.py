"""Opens a bundle after checking every byte of it; large parts stay memory-mapped."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recserve.engine.bundle import layout
from recserve.engine.bundle.catalogue import ITEM_ID, Catalogue
from recserve.engine.bundle.histories import StoredHistories
from recserve.engine.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from recserve.engine.bundle.vocabulary import Vocabulary
from recserve.engine.bundle.writer import sha256_of
from recserve.errors import BundleInvalid

Scalar = TypeVar("Scalar", bound=np.generic)
EXPORT_AGAIN = "Export the bundle again."


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle. Arrays are read-only memory maps.

    ``item_embeddings``: (n_items, embedding_size) float32; ``popularity``: (n_items,) int64 counts.
    """

    folder: Path
    manifest: Manifest
    catalogue: Catalogue
    histories: StoredHistories
    item_embeddings: NDArray[np.float32]
    popularity: NDArray[np.int64]

    def read(self, name: str) -> bytes:
        """Returns the bytes of a listed file, checked against the manifest as they were read."""
        data = (self.folder / name).read_bytes()
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
    items = _map_table(folder, layout.ITEMS, [ITEM_ID])
    vocabulary = _vocabulary(items.column(ITEM_ID), folder, layout.ITEM_LOOKUP)
    bundle = Bundle(
        folder=folder,
        manifest=manifest,
        catalogue=Catalogue(items, vocabulary),
        histories=_open_histories(folder, manifest),
        item_embeddings=_map_array(folder, layout.ITEM_EMBEDDINGS, np.dtype(np.float32)),
        popularity=_map_array(folder, layout.POPULARITY, np.dtype(np.int64)),
    )
    _check_consistency(bundle)
    return bundle


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest alone, without checking the files that it names."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise BundleInvalid(
            f"bundle {folder}",
            found="a folder without manifest.json" if folder.is_dir() else "not a folder",
            expected="a folder that `recserve export` wrote",
            cure="Check the path.",
        )
    try:
        return Manifest.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise BundleInvalid(MANIFEST_NAME, found="not UTF-8", expected="JSON", cure=EXPORT_AGAIN) from error


def _check_files(folder: Path, manifest: Manifest) -> None:
    present = {
        str(Path(root, name).relative_to(folder)) for root, _, names in os.walk(folder) for name in names
    } - {MANIFEST_NAME}
    for name in sorted(present - set(manifest.files)):
        raise BundleInvalid(f"file {name}", found="in the bundle", expected="only files of the manifest")
    for name, entry in sorted(manifest.files.items()):
        if name not in present:
            raise BundleInvalid(f"file {name}", found="missing", expected="present", cure=EXPORT_AGAIN)
        _check_file(folder / name, name, entry)


def _check_file(path: Path, name: str, entry: FileEntry) -> None:
    status = path.lstat()
    # A link or a pipe could point outside the bundle or change under us.
    if not stat.S_ISREG(status.st_mode):
        raise BundleInvalid(f"file {name}", found="a link or special file", expected="a regular file")
    if status.st_size != entry.size_bytes:
        raise BundleInvalid(
            f"size of {name}",
            found=f"{status.st_size} bytes",
            expected=f"{entry.size_bytes} bytes",
            cure=EXPORT_AGAIN,
        )
    found = sha256_of(path)
    if found != entry.sha256:
        raise BundleInvalid(
            f"SHA-256 of {name}", found=found[:12] + "…", expected=entry.sha256[:12] + "…", cure=EXPORT_AGAIN
        )


def _require(manifest: Manifest, name: str) -> None:
    if name not in manifest.files:
        raise BundleInvalid(f"file {name}", found="not listed", expected="in every bundle", cure=EXPORT_AGAIN)


def _map_table(folder: Path, name: str, columns: list[str]) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(folder / name))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise BundleInvalid(f"file {name}", found="unreadable", expected="an Arrow file") from error
    for column in columns:
        if column not in table.column_names:
            raise BundleInvalid(f"column {column} of {name}", found="missing", expected="present")
    return table


def _map_array(folder: Path, name: str, dtype: np.dtype[Scalar]) -> NDArray[Scalar]:
    try:
        array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise BundleInvalid(f"file {name}", found="unreadable", expected="a .npy array") from error
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise BundleInvalid(f"array {name}", found=array.dtype, expected=f"C-order {dtype}")
    return array  # type: ignore[no-any-return]


def _vocabulary(ids: pa.ChunkedArray, folder: Path, lookup_name: str) -> Vocabulary:
    lookup = _map_table(folder, lookup_name, ["hash", "row"])
    return Vocabulary(
        ids.combine_chunks(),
        lookup.column("hash").combine_chunks().to_numpy(),
        lookup.column("row").combine_chunks().to_numpy(),
    )


def _open_histories(folder: Path, manifest: Manifest) -> StoredHistories:
    _require(manifest, layout.HISTORIES)
    _require(manifest, layout.USER_LOOKUP)
    table = _map_table(folder, layout.HISTORIES, ["user_id", "items", "timestamps"])
    return StoredHistories(table, _vocabulary(table.column("user_id"), folder, layout.USER_LOOKUP))


def _check_consistency(bundle: Bundle) -> None:
    manifest = bundle.manifest
    shape = (manifest.n_items, manifest.embedding_size)
    if bundle.item_embeddings.shape != shape:
        raise BundleInvalid("item_embeddings", found=bundle.item_embeddings.shape, expected=f"shape {shape}")
    for name, length in (("items", len(bundle.catalogue)), ("popularity", len(bundle.popularity))):
        if length != manifest.n_items:
            raise BundleInvalid(f"{name} rows", found=length, expected=str(manifest.n_items))
    if not np.isfinite(bundle.item_embeddings).all():
        raise BundleInvalid("item_embeddings", found="NaN or infinite", expected="finite numbers")
