"""Writes a bundle all or nothing: a temporary folder beside the target, fsync, then one rename."""

import ctypes
import errno
import hashlib
import os
import shutil
import uuid
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recserve.engine.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from recserve.engine.bundle.shards import SHARD_BYTES, save_shard, split
from recserve.engine.bundle.signatures import SIGNATURES_NAME, signatures_with
from recserve.engine.bundle.signing_keys import SigningKey
from recserve.errors import InvalidRequest
from recserve.files import fsync

# Of Linux's renameat2, which Python does not offer.
AT_FDCWD, RENAME_EXCHANGE = -100, 2


class BundleWriter:
    """Collects the files of a bundle; ``commit`` publishes them, leaving the block without it removes them.

    >>> with BundleWriter(Path("bundles/movies")) as writer:
    ...     writer.add_bytes("variants/fp32/query_encoder.onnx", graph)
    ...     writer.commit(manifest_without_files)
    """

    def __init__(self, target: Path, *, replace: bool = False, shard_bytes: int = SHARD_BYTES) -> None:
        """``shard_bytes``: of a file of :meth:`add_rows`, at most.

        Raises :class:`InvalidRequest` when ``target`` exists and may not be replaced.
        """
        if target.is_symlink():
            raise InvalidRequest(
                f"bundle folder {target}",
                found="a link",
                expected="a folder",
                cure="Export to a new folder and move the link.",
            )
        self.target = target
        self._replace = replace
        self._shard_bytes = shard_bytes
        if target.exists() and not (replace and (target / MANIFEST_NAME).is_file()):
            raise _taken(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.folder = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        self.folder.mkdir()
        self.files: dict[str, FileEntry] = {}

    def __enter__(self) -> "BundleWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def path(self, name: str) -> Path:
        """Returns where the file ``name`` is being written, with its folder made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add_bytes(self, name: str, data: bytes) -> None:
        """Writes a file from bytes."""
        self.path(name).write_bytes(data)
        self.seal(name)

    def add_array(self, name: str, array: NDArray[np.generic]) -> None:
        """Writes an array as ``.npy``, C-order."""
        np.save(self.path(name), np.ascontiguousarray(array), allow_pickle=False)
        self.seal(name)

    def add_rows(self, name: str, table: NDArray[np.generic]) -> None:
        """As :meth:`add_array`, a table (n, width) of many rows in several files."""
        table = np.ascontiguousarray(table)
        parts = list(split(name, table, self._shard_bytes))
        if len(parts) == 1:
            self.add_array(name, table)
            return
        for file, rows in parts:
            with self.path(file).open("wb") as stream:
                save_shard(stream, rows)
            self.seal(file)

    def add_table(self, name: str, table: pa.Table) -> None:
        """Writes an Arrow table as one record batch, so that a reader maps it without copying."""
        batches = table.combine_chunks().to_batches(max_chunksize=max(1, table.num_rows))
        with pa.OSFile(str(self.path(name)), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
            for batch in batches:
                out.write_batch(batch)
        self.seal(name)

    def seal(self, name: str) -> None:
        """Flushes a finished file to disk and records its size and digest."""
        path = self.folder / name
        fsync(path)
        self.files[name] = FileEntry(path.stat().st_size, sha256_of(path))

    def commit(self, manifest: Manifest, signing_key: SigningKey | None = None) -> None:
        """Writes ``manifest`` (whose ``files`` must be :attr:`files`) and publishes the folder atomically.

        With ``signing_key`` the bundle is signed from its first moment.
        """
        data = manifest.to_json().encode()
        self._write_durably(MANIFEST_NAME, data)
        if signing_key is not None:
            self._write_durably(SIGNATURES_NAME, signatures_with({}, data, signing_key))
        for folder, _, _ in os.walk(self.folder):
            fsync(Path(folder))
        if self._replace and self.target.exists():
            # The older bundle gets the temporary name, under which leaving the block removes it.
            _exchange(self.folder, self.target)
        else:
            self._rename()
        fsync(self.target.parent)

    def _write_durably(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)
        fsync(self.folder / name)

    def _rename(self) -> None:
        try:
            self.folder.rename(self.target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise _taken(self.target) from error


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file as hex, reading it in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _taken(target: Path) -> InvalidRequest:
    return InvalidRequest(
        f"bundle folder {target}",
        found="there already",
        expected="a new folder",
        cure="Choose another one, or replace an older bundle with --replace.",
    )


def _exchange(new: Path, old: Path) -> None:
    """Swaps the names of two folders, in one step where the system can: a reader finds either, never none."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = (AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old))
    if renameat2 is not None and renameat2(*names, RENAME_EXCHANGE) == 0:
        return
    # Elsewhere (macOS, some network file systems) in three steps.
    retired = old.with_name(f"{new.name}.old")
    old.rename(retired)
    new.rename(old)
    retired.rename(new)
