"""Files as a bundle may have them: regular, of one name, not behind a link."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from recserve.engine.bundle.manifest import FileEntry
from recserve.errors import BundleInvalid, BundleReason

EXPORT_AGAIN = "Export the bundle again."
COPY_BYTES = 1 << 20


def open_plain(path: Path, name: str, *, linked: bool = False) -> BufferedReader:
    """Opens a file for reading; raises :class:`BundleInvalid` for a link of either kind or a special file.

    ``linked``: whether the file may have other names (hard links), as one that is about to be copied may.
    """
    try:
        # Neither through a link nor blocked by a pipe that nobody writes to.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise not_plain(name) from error
        raise unreadable(name, error) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not (linked or status.st_nlink == 1):
        # It could point outside the bundle or change under us.
        os.close(descriptor)
        raise not_plain(name)
    return open(descriptor, "rb")


def read_plain(path: Path, name: str, max_bytes: int) -> bytes:
    """Returns the bytes of a file; raises :class:`BundleInvalid` as open_plain, and for a larger one."""
    with open_plain(path, name) as file:
        try:
            data = file.read(max_bytes + 1)
        except OSError as error:
            raise unreadable(name, error) from error
    if len(data) > max_bytes:
        raise _too_large(name, max_bytes)
    return data


def copy_bounded(source: BinaryIO, target: Path, name: str, max_bytes: int) -> None:
    """Copies a stream to the new file ``target``.

    Raises :class:`BundleInvalid` where ``source`` has more than ``max_bytes``, of which no more were written.
    """
    with target.open("xb") as file:
        left = max_bytes
        while chunk := source.read(COPY_BYTES):
            left -= len(chunk)
            if left < 0:
                raise _too_large(name, max_bytes)
            file.write(chunk)


def check_file(path: Path, name: str, entry: FileEntry) -> None:
    """Raises :class:`BundleInvalid` unless the file is plain and has the size and digest of ``entry``."""
    with open_plain(path, name) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.size_bytes:
            raise BundleInvalid(
                f"size of {name}",
                found=f"{size} bytes",
                expected=f"{entry.size_bytes} bytes",
                cure=EXPORT_AGAIN,
                reason=BundleReason.FILE_SIZE,
            )
        try:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(name, error) from error
    if found != entry.sha256:
        raise BundleInvalid(
            f"SHA-256 of {name}",
            found=found[:12] + "…",
            expected=entry.sha256[:12] + "…",
            cure=EXPORT_AGAIN,
            reason=BundleReason.FILE_DIGEST,
        )


def files_in(folder: Path) -> Iterator[str]:
    """Yields the path of everything in ``folder`` but folders; a link to a folder counts as a file."""
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        for name in [*names, *links]:
            yield str(Path(root, name).relative_to(folder))


def unreadable(name: str, error: OSError) -> BundleInvalid:
    """Returns the error for a file that the system does not let us read."""
    return BundleInvalid(
        f"file {name}",
        found=f"not readable ({error.strerror})",
        expected="readable",
        reason=BundleReason.FILE_UNREADABLE,
    )


def not_plain(name: str) -> BundleInvalid:
    """Returns the error for a link or a special file."""
    return BundleInvalid(
        f"file {name}",
        found="a link or special file",
        expected="a regular file with one name",
        cure="Copy the bundle without links.",
        reason=BundleReason.FILE_NOT_PLAIN,
    )


def _too_large(name: str, max_bytes: int) -> BundleInvalid:
    return BundleInvalid(
        f"file {name}",
        found=f"over {max_bytes} bytes large",
        expected="smaller",
        reason=BundleReason.TOO_LARGE,
    )
