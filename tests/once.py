"""What the workers of a test run share is made by the first one that needs it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def made_once(folder: Path) -> Iterator[bool]:
    """Yields whether ``folder`` has yet to be made; other workers wait for the end of the block."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not folder.exists()
