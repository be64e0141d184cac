"""A search in parts: the threads that share it take them one by one, without the interpreter lock.

A *job* lists the arguments of a search and its parts, as a table lists a catalogue. Each helper has a *box*
for the address of a job. Who waits does so awake for a while: to wake a thread, or to hand the interpreter
lock over, takes as long as to search for some queries.
"""

# mypy: allow-untyped-defs

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numba import carray, config, typeof, types

from recserve.kernels.isa import Isa
from recserve.kernels.jit import kernel
from recserve.kernels.search import ARGUMENTS, search_rows, search_tiles
from recserve.kernels.simd import atomic_add, compare_exchange, nap, wait_for_change
from recserve.kernels.table import of_queries, pointer

BOX_WORDS = 16  # two cache lines: nobody else writes near what a helper watches
STATE, JOB = 0, 8  # the words of a box that are used, the second with the number of rows after it
FREE, POSTED, TAKEN = range(3)  # states: no job; one that the helper may take; one that it works on

# Rows of a job: of arrays their address and shape. The first: how many parts were begun, how many there are,
# and the reach. A row for each part follows: its first query, its end, and what its search returned.
_BEGUN, _TABLE, _QUERIES, _SCORES, _INDICES, _COUNTERS, JOB_ROWS = range(7)
NOT_DONE = -2
Serve = Callable[[npt.NDArray[np.int64], int], None]

CALLER_TURNS = 10_000  # of 20 to 50 ns, before a caller naps: a helper that is so late may need this core


@functools.cache
def forms(isa: Isa | None) -> tuple[Callable[..., None], Serve]:
    """The compiled :func:`post` and, of an instruction set, :func:`serve`; see search.search_forms."""
    blocking, query_limit = (isa.block, isa.query_limit) if isa else (None, 0)
    posting, serving = post, serve
    if not config.DISABLE_JIT:
        words = types.int64[::1]
        posting = post.compile((types.int64[:, ::1], words, words, *ARGUMENTS))
        serving = serve.compile((typeof(blocking), types.int64, words, types.int64))
    return posting, functools.partial(serving, blocking, query_limit)


@kernel
def post(job, boxes, ends, table, queries, reach, out_scores, out_indices, counters):
    """Fills a job and puts it into boxes that nobody else puts one into.

    job: (JOB_ROWS + n_parts, 3) int64, overwritten · boxes: (n_threads,) int64, their addresses · ends:
    (n_parts,) int64, where the parts of the queries end · the rest: the arguments of a search. All must live
    until the job is settled.
    """
    job[_BEGUN, 0], job[_BEGUN, 2] = 0, np.float64(reach).view(np.int64)
    _put(job, _TABLE, table)
    _put(job, _QUERIES, queries)
    _put(job, _SCORES, out_scores)
    _put(job, _INDICES, out_indices)
    job[_COUNTERS, 0], job[_COUNTERS, 1] = counters.ctypes.data, counters.shape[0]
    start = 0
    for part in range(ends.shape[0]):
        row = JOB_ROWS + part
        job[row, 0], job[row, 1], job[row, 2] = start, ends[part], NOT_DONE
        start = ends[part]
    for address in boxes:
        box = _box_at(address)
        box[JOB], box[JOB + 1] = job.ctypes.data, job.shape[0]
        compare_exchange(box, STATE, FREE, POSTED)


@kernel
def settle(boxes):
    """Takes back jobs that no helper has begun, and waits for those that work: then none reads them."""
    for address in boxes:
        box = _box_at(address)
        compare_exchange(box, STATE, POSTED, FREE)
        wait_for_change(box, STATE, TAKEN, CALLER_TURNS)
        while box[STATE] == TAKEN:
            nap()
            wait_for_change(box, STATE, TAKEN, 1)


@kernel
def serve(blocking, query_limit, box, turns):
    """Takes job after job from a box, (BOX_WORDS,) int64, until none came for so many turns of waiting."""
    while True:
        wait_for_change(box, STATE, FREE, turns)
        if not compare_exchange(box, STATE, POSTED, TAKEN):
            return
        work_on(blocking, query_limit, carray(pointer(box[JOB]), (box[JOB + 1], 3), np.int64))
        compare_exchange(box, STATE, TAKEN, FREE)


@kernel
def work_on(blocking, query_limit, job):
    """Searches for those parts of a job that no other thread has begun."""
    while True:
        row = JOB_ROWS + atomic_add(job.reshape(-1), 0, 1)
        if row >= job.shape[0]:
            return
        search_part(blocking, query_limit, job, row)


@kernel
def search_part(blocking, query_limit, job, row):
    """Searches for one part, and writes the result to its row."""
    start, end = job[row, 0], job[row, 1]
    reach = np.int64(job[_BEGUN, 2]).view(np.float64)
    table = of_queries(_matrix_at(job, _TABLE, np.int64), start, end)
    queries = _matrix_at(job, _QUERIES, np.float32)[start:end]
    scores = _matrix_at(job, _SCORES, np.float32)[start:end]
    indices = _matrix_at(job, _INDICES, np.int32)[start:end]
    counters = carray(pointer(job[_COUNTERS, 0]), job[_COUNTERS, 1], np.int64)
    if blocking is None:
        job[row, 2] = search_rows(table, queries, reach, scores, indices, counters)
    else:
        job[row, 2] = search_tiles(blocking, query_limit, table, queries, reach, scores, indices, counters)


@kernel
def _put(job, row, matrix):
    job[row, 0], job[row, 1], job[row, 2] = matrix.ctypes.data, matrix.shape[0], matrix.shape[1]


@kernel
def _matrix_at(job, row, dtype):
    return carray(pointer(job[row, 0]), (job[row, 1], job[row, 2]), dtype)


@kernel
def _box_at(address):
    return carray(pointer(address), BOX_WORDS, np.int64)
