"""The one decorator of every kernel: serial, ``nogil``, compiled once per machine and cached on disk."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles ``function`` on its first call; the result is kept beside the source, or in the user's cache.

    No fast-math: the order of every floating-point sum is part of the contract of this package. Threads
    belong to the caller, so no kernel is ever ``parallel=True``.
    """
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # Numba: "cannot cache function ...: no locator available for file ..."
        _warn_without_cache()
        return njit(nogil=True, error_model="numpy")(function)


@functools.cache
def _warn_without_cache() -> None:
    warnings.warn(
        "The compiled kernels cannot be kept: no cache folder is writable, so every process compiles them "
        "anew. Set NUMBA_CACHE_DIR to a writable folder.",
        RuntimeWarning,
        stacklevel=4,
    )
