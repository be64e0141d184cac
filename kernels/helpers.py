"""Threads that help with one search: its queries are shared out, and each part is a search of its own.

To wake a thread that sleeps takes as long as to search for some queries, so a helper that has just worked,
and a caller whose part is done, first wait inside a kernel for a while, without the interpreter lock.
"""

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from recserve.kernels.jit import kernel
from recserve.kernels.simd import wait_for_change
from recserve.kernels.table import Table, of_queries

MIN_PART = 16  # queries: a smaller part costs more to hand over than to search
BLOCK = 8  # queries: the most that a micro-kernel scores at once
TURNS = 80_000  # of waiting before a helper sleeps, 20 to 50 ns each
CALLER_TURNS = 10_000  # before the caller does: a helper that is so late may need this core to go on
LOCK_TURNS = 100  # until the caller, which wakes a helper, has let go of the interpreter lock
_CACHE_LINE_WORDS = 8

# A function, its arguments, and what must live until it returns: a table keeps nothing alive.
Task = tuple[Callable[..., int], tuple[Any, ...], object]
Result = int | BaseException


class _Helper:
    """One thread: :meth:`start` gives it a task, :meth:`finish` waits for what came of it."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task] = SimpleQueue()
        self._results: SimpleQueue[Result] = SimpleQueue()
        # How many tasks came, and were done: the queues carry them, these only wake who waits.
        self._counts = np.zeros(2 * _CACHE_LINE_WORDS, np.int64)
        threading.Thread(target=self._work, name="recserve-search", daemon=True).start()

    def start(self, task: Task) -> None:
        self._tasks.put(task)
        self._counts[0] += 1

    def finish(self) -> Result:
        _wait(self._counts, _CACHE_LINE_WORDS, self._counts[0] - 1, CALLER_TURNS, 0)
        return self._results.get()

    def _work(self) -> None:
        while True:
            _wait(self._counts, 0, self._counts[_CACHE_LINE_WORDS], TURNS, LOCK_TURNS)
            self._results.put(_result_of(self._tasks.get()))
            self._counts[_CACHE_LINE_WORDS] += 1


def _result_of(task: Task) -> Result:
    function, arguments, _held = task
    try:
        return function(*arguments)
    except BaseException as error:  # noqa: BLE001 - raised again when no thread writes to the arrays any more
        return error


_idle: list[_Helper] = []  # append and pop are atomic
os.register_at_fork(after_in_child=_idle.clear)


@kernel
def _wait(counts, position, value, turns, turns_after):  # type: ignore[no-untyped-def]
    wait_for_change(counts, position, value, turns)
    wait_for_change(counts, position, counts[position], turns_after)


def search_together(
    threads: int,
    search: Callable[..., int],
    held: object,
    table: Table,
    queries: npt.NDArray[np.float32],
    reach: float,
    out_scores: npt.NDArray[np.float32],
    out_indices: npt.NDArray[np.int32],
    counters: npt.NDArray[np.int64],
) -> int:
    """Does what ``search`` does, with the same result, on the caller's thread and up to ``threads`` − 1 more.

    search: a form of the search module · held: the arrays that ``table`` lists · the rest are its arguments.
    """
    ends = part_ends(len(queries), threads)
    starts = [0, *ends[:-1]]
    tasks: list[Task] = []
    for start, end in zip(starts, ends, strict=True):
        part = slice(start, end)
        arguments = queries[part], reach, out_scores[part], out_indices[part], counters
        tasks.append((search, (of_queries(table, start, end), *arguments), held))
    helpers = [_take() for _ in tasks[1:]]
    for helper, task in zip(helpers, tasks[1:], strict=True):
        helper.start(task)
    results = [_result_of(tasks[0])]
    for helper in helpers:
        results.append(helper.finish())
        _idle.append(helper)
    for start, result in zip(starts, results, strict=True):
        if isinstance(result, BaseException):
            raise result
        if result >= 0:
            return start + result
    return -1


def part_ends(n_queries: int, threads: int) -> list[int]:
    """Where the parts of a batch end: whole blocks, the first part the largest."""
    n_parts = max(1, min(threads, n_queries // MIN_PART))
    n_blocks = -(-n_queries // BLOCK)
    return [min(n_queries, BLOCK * -(-n_blocks * part // n_parts)) for part in range(1, n_parts + 1)]


def _take() -> _Helper:
    try:
        return _idle.pop()
    except IndexError:
        return _Helper()
