"""The decorators of kernels: serial, mostly ``nogil``, compiled once per machine and cached on disk."""

import fcntl
import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles ``function`` on its first call; the result is kept beside the source, or in the user's cache.

    No fast-math: the order of every floating-point sum is part of the contract of this package. Threads
    belong to the caller, so no kernel is ever ``parallel=True``.
    """
    return _compiled(function, nogil=True)


def brief_kernel(function: Callable[..., Any]) -> Any:
    """Does what :func:`kernel` does for microseconds of work: it keeps the interpreter lock.

    To take the lock back from a thread that is busy takes longer than such a kernel.
    """
    return _compiled(function, nogil=False)


def _compiled(function: Callable[..., Any], nogil: bool) -> Any:
    try:
        compiled = njit(nogil=nogil, error_model="numpy", cache=True)(function)
    except RuntimeError:  # Numba: "cannot cache function ...: no locator available for file ..."
        _warn_without_cache()
        return njit(nogil=nogil, error_model="numpy")(function)
    if not config.DISABLE_JIT:
        _secure_cache(compiled._cache._cache_file)
    return compiled


def _secure_cache(cache_file: Any) -> None:
    """Closes two gaps through which Numba's cache hands out the wrong machine code.

    Numba looks at the source file of the function alone, but the machine code also holds the kernels that it
    calls: after a change in one file, a caller in another would go on with the old code. And two processes
    that save different specialisations at once both choose the name of a data file from the index that they
    read: one's code ends up under the other's signature.
    """
    cache_file._source_stamp = _sources_digest()
    save = cache_file.save

    def save_alone(key: Any, data: Any) -> None:
        with open(Path(cache_file._cache_path) / "kernels.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            save(key, data)

    cache_file.save = save_alone


@functools.cache
def _sources_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _warn_without_cache() -> None:
    warnings.warn(
        "The compiled kernels cannot be kept: no cache folder is writable, so every process compiles them "
        "anew. Set NUMBA_CACHE_DIR to a writable folder.",
        RuntimeWarning,
        stacklevel=5,
    )
