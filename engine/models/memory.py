"""Gives memory that nothing uses any more back to the system."""

import ctypes


def release_memory() -> None:
    """Asks the allocator for its free pages; called after a version was freed.

    glibc keeps what was freed for later; elsewhere this does not exist and is left out. There is no
    ``gc.collect()`` here: an engine is in no cycle, and a full collection stops every thread.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
