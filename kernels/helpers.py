"""Threads that help with one search: its queries are shared out, and each part is a search of its own."""

import os
import threading
import warnings
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from recserve.kernels.isa import Isa
from recserve.kernels.parts import BOX_WORDS, FREE, JOB_ROWS, NOT_DONE, STATE, Serve, forms, settle
from recserve.kernels.search import SearchForm
from recserve.kernels.table import Table

MIN_PART = 16  # queries: a smaller part costs more to hand over than to search
BLOCK = 8  # queries: the most that a micro-kernel scores at once
TURNS = 80_000  # of waiting before a helper sleeps, 20 to 50 ns each


class _Helper:
    """One thread that takes jobs from its box; it lives as long as the process."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._box = np.zeros(BOX_WORDS, np.int64)
        self._wake = threading.Semaphore(0)
        self._sleeps = False
        self.address = self._box.ctypes.data
        threading.Thread(target=self._work, name="recserve-search", daemon=True).start()

    def rouse(self) -> None:
        """Wakes the thread if it sleeps: one that falls asleep just now misses a search, not the next."""
        if self._sleeps:
            self._wake.release()

    def _work(self) -> None:
        while True:
            try:
                self._serve(self._box, TURNS)
            except MemoryError:  # the caller searches for this part again, and raises what it meets
                self._box[STATE] = FREE
            self._sleeps = True
            self._wake.acquire()
            self._sleeps = False


_idle: defaultdict[Isa | None, list[_Helper]] = defaultdict(list)  # append and pop are atomic
os.register_at_fork(after_in_child=_idle.clear)


def search_together(
    threads: int,
    isa: Isa | None,
    search: SearchForm,
    table: Table,
    queries: npt.NDArray[np.float32],
    *rest: Any,
) -> int:
    """Does what ``search`` does, with the same result, on the caller's thread and up to ``threads`` − 1 more.

    search: the form of ``isa`` for many queries, see the search module · the rest are its arguments.
    """
    (post, serve), ends = forms(isa), part_ends(len(queries), threads)
    job = np.empty((JOB_ROWS + len(ends), 3), np.int64)
    own_box = np.zeros(BOX_WORDS, np.int64)
    helpers: list[_Helper] = []
    try:
        _take(helpers, len(ends) - 1, _idle[isa], serve)
        boxes = np.array([own_box.ctypes.data, *(helper.address for helper in helpers)])
        for helper in helpers:
            helper.rouse()
        try:
            post(job, boxes, ends, table, queries, *rest)
            serve(own_box, 0)
        finally:
            # Not this thread's own: what it had no memory for nobody goes on with.
            settle(boxes[1:])
    finally:
        _idle[isa] += helpers
    start: int
    result: int
    for start, _, result in job[JOB_ROWS:].tolist():
        if result == NOT_DONE:  # the helper that took it ran out of memory: maybe this thread does not
            return search(table, queries, *rest)
        if result >= 0:
            return start + result
    return -1


def part_ends(n_queries: int, threads: int) -> npt.NDArray[np.int64]:
    """Where the parts of a batch end: whole blocks, the first part the largest."""
    n_parts = max(1, min(threads, n_queries // MIN_PART))
    n_blocks = -(-n_queries // BLOCK)
    ends = [min(n_queries, BLOCK * -(-n_blocks * part // n_parts)) for part in range(1, n_parts + 1)]
    return np.array(ends, np.int64)


def _take(helpers: list[_Helper], n: int, idle: list[_Helper], serve: Serve) -> None:
    """Appends ``n`` helpers, or as many as can be started."""
    while len(helpers) < n:
        try:
            helpers.append(idle.pop())
        except IndexError:
            try:
                helpers.append(_Helper(serve))
            except RuntimeError as error:
                warnings.warn(
                    f"A thread that helps with searches is not started: {error}. "
                    f"This search goes on with {1 + len(helpers)} of {1 + n} threads.",
                    RuntimeWarning,
                    stacklevel=4,
                )
                return
