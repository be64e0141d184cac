"""Files that are whole or not there, whatever ends the process or the machine."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes | memoryview, *, temporary: Path | None = None) -> None:
    """Replaces ``path`` durably: a reader, and who comes after a kill, finds the old file or the new one.

    ``temporary``: where the new one is written, on the same file system. Not given: beside it, under one
    name, for a file with one writer; what a kill has left there is written over.
    """
    partial = temporary or path.with_name(f".{path.name}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
