"""Compiles or loads everything before the first request does."""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba.core.dispatcher import Dispatcher

from recserve.kernels.calibrated import Categories, calibrated
from recserve.kernels.checks import read_only
from recserve.kernels.diversity import dpp, mmr, unit_scores
from recserve.kernels.encoding import encode_slate_items
from recserve.kernels.foldin import fold_in, fold_in_shares, gram_matrix
from recserve.kernels.index import ItemIndex
from recserve.kernels.nearest import nearest_of
from recserve.kernels.padding import pad_lists, split_lengths


class WarmedKernel(NamedTuple):
    """What a warm-up did for one kernel: how many forms it compiled, and how many it found in the cache."""

    kernel: str
    compiled: int
    loaded: int


def warmup() -> None:
    """Runs every kernel once in each form that a request may need: some 15 s the first time on a machine.

    After that the compiled kernels come from Numba's cache in a fraction of a second.
    """
    vectors = np.eye(3, dtype=np.float32)
    lists = (np.array([0, 1, 1, 1]), np.array([2], np.int32))
    index = ItemIndex.build(vectors)
    index.upsert(np.array([0], np.int32), vectors[:1])
    index.search(vectors[:1], 2)
    index.search(np.tile(vectors, (11, 1)), 2, threads=2)
    index.search(vectors, 2, exclude=lists, allow=np.ones(3, np.bool_), bias=np.zeros(3, np.float32))
    scores, candidates = index.search(vectors, 2)
    mmr(scores, candidates, vectors, 2, diversity=0.5)
    dpp(unit_scores(scores, candidates), candidates, vectors, 2, diversity=0.5)
    categories = Categories(lists[0], lists[1], 3)
    calibrated(scores, candidates, categories, np.ones((3, 3), np.float32), 2, weight=0.5)
    nearest_of(vectors, np.array([0], np.int32), np.array([1, 2], np.int32), 2)
    fold_in(vectors, lists, np.ones(1, np.float32), reg=1.0)
    pad_lists(lists[1], lists[0][1:], split_lengths(lists[0][1:], 1.0)[0], 2)
    few = np.array([0], np.int32)
    fold_in_shares(vectors, few, 1.0, few, 1, reg=1.0, gram=gram_matrix(vectors))
    read_only_offsets, read_only_bytes = read_only(np.arange(4)), read_only(np.zeros(3, np.uint8))
    encode_slate_items(read_only_offsets, read_only_bytes, candidates, scores, np.array([2, 2, 2]))


def warmup_report() -> list[WarmedKernel]:
    """Runs :func:`warmup` and returns what it did for each kernel; kernels it had no work with are left out.

    A kernel that another one calls comes with its caller, and so does not show where the caller was in the
    cache. Empty where Numba is switched off.
    """
    before = {name: _counts(kernel) for name, kernel in _kernels()}
    warmup()
    warmed = []
    for name, kernel in _kernels():
        compiled, loaded = (
            now - then for now, then in zip(_counts(kernel), before.get(name, (0, 0)), strict=True)
        )
        if compiled or loaded:
            warmed.append(WarmedKernel(name, compiled, loaded))
    return warmed


def _kernels() -> Iterator[tuple[str, Any]]:
    """Every kernel of this package, once, by the module and the name that it was written under."""
    package = __name__.rpartition(".")[0]
    for module_name, module in sorted(sys.modules.items()):
        if module_name.startswith(f"{package}."):
            for name, value in sorted(vars(module).items()):
                if isinstance(value, Dispatcher) and value.py_func.__module__ == module_name:
                    yield f"{module_name.removeprefix(f'{package}.')}.{name}", value


def _counts(kernel: Any) -> tuple[int, int]:
    statistics = kernel.stats
    return sum(statistics.cache_misses.values()), sum(statistics.cache_hits.values())
