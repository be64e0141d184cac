"""Gives memory that nothing uses any more back to the system."""

import ctypes
import gc


def release_memory() -> None:
    """Collects cycles and asks the allocator for its free pages; after a version was freed or failed.

    glibc keeps what was freed for later; elsewhere the second step does not exist and is left out.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
