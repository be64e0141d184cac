"""Where fetched data is kept, and how it gets there whole or not at all."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from recserve.errors import DataError


def default_cache_dir() -> Path:
    """Returns ``$XDG_CACHE_HOME/recserve``, or ``~/.cache/recserve``: the only place that asks for it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rules say that a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "recserve"


def has_digest(path: Path, algorithm: str, digest: str) -> bool:
    """True if the file exists and has the hash; ``algorithm`` is a name of hashlib."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return found.hexdigest() == digest


def keep(path: Path, algorithm: str, digest: str, fetch: Callable[[Path], None]) -> None:
    """Lets ``fetch`` write a temporary file and moves it to ``path`` only if the hash is right.

    Raises DataError for another hash, and what ``fetch`` raises; nothing stays behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        fetch(partial)
        if not has_digest(partial, algorithm, digest):
            raise DataError(
                f"fetched {path.name}",
                found=f"a file with another {algorithm}",
                expected=f"{algorithm} {digest}",
                cure="Fetch it again later, or over another network.",
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
