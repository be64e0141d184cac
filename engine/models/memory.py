"""Keeps memory that nothing uses any more from staying with the process."""

import ctypes

# Of malloc.h.
M_ARENA_MAX = -8


def share_one_arena() -> None:
    """Has all threads allocate from one arena; called before a server starts its own.

    With an arena a thread, what one allocates and another frees leaves holes: callers who take 20,000 calls
    back at a time (HTTP/2 rapid reset) made a process grow with each of them, and with one arena only at
    the first. glibc only, like :func:`release_memory`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def release_memory() -> None:
    """Asks the allocator for its free pages; called after a version was freed.

    glibc keeps what was freed for later; elsewhere this does not exist and is left out. There is no
    ``gc.collect()`` here: an engine is in no cycle, and a full collection stops every thread.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
