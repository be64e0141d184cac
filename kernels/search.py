"""One search, from queries to answer, in one call of a kernel: the portable and the fast forms.

All take the catalogue as a table of addresses, see the table module, and differ in the scan alone.
"""

# mypy: allow-untyped-defs

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, typeof, types

from recserve.kernels.floats import scan_vectors
from recserve.kernels.isa import Blocking, Isa
from recserve.kernels.jit import kernel
from recserve.kernels.packing import row_norms
from recserve.kernels.planes import scan_planes
from recserve.kernels.rows import Batch, Lists, scan_rows
from recserve.kernels.simd import atomic_add
from recserve.kernels.table import base_in, masks_and_bias_in, tail_in, tiles_in
from recserve.kernels.tiles import scan_tiles
from recserve.kernels.topk import NO_KEY, write_answer

SearchForm = Callable[..., int]

ARGUMENTS = (
    types.int64[:, ::1],
    types.float32[:, ::1],
    types.float64,
    types.float32[:, ::1],
    types.int32[:, ::1],
    types.int64[::1],
)


@functools.cache
def search_forms(isa: Isa | None) -> tuple[SearchForm, SearchForm]:
    """The searches of an instruction set, for few and for many queries, from the table on as search_rows.

    They are the compiled code itself. To have Numba find it by the types of the arguments costs 0.7 µs, and
    9 µs where other work has filled the caches meanwhile; so the caller answers for the types.
    """
    if isa is None:
        form = search_rows if config.DISABLE_JIT else search_rows.compile(ARGUMENTS)
        return form, form
    return (
        _bind(search_planes, isa.single, isa.query_limit),
        _bind(search_tiles, isa.block, isa.query_limit),
    )


def _bind(search: Any, blocking: Blocking, query_limit: int) -> SearchForm:
    compiled = search.compile((typeof(blocking), types.int64, *ARGUMENTS))
    return functools.partial(compiled, blocking, query_limit)


@kernel
def search_rows(table, queries, reach, out_scores, out_indices, counters):
    """Writes the exact top-K of every query; returns the first query that is not valid, or −1.

    table: of the table module · queries: (batch, d) float32 · reach: the largest cosine that is reckoned
    with, 1 to be exact · out_scores, out_indices: (batch, k) float32 and int32, overwritten · counters: (3,)
    int64, to which the numbers of queries, of tiles scanned (per query) and of rows scored in float32 after
    that are added; searches in other threads may add to the same.
    """
    norms = np.empty(queries.shape[0], np.float32)
    refused = row_norms(queries, norms)
    if refused >= 0:
        return refused
    base, tail = base_in(table), tail_in(table)
    batch, lists = make_batch(table, queries, norms, reach), make_lists(base, tail, out_scores.shape)
    scan_vectors(tail, base.norm_bounds.shape[0], batch, lists)
    scan_vectors(base, 0, batch, lists)
    write_answers(lists, out_scores, out_indices)
    atomic_add(counters, 0, queries.shape[0])
    return -1


@kernel
def search_tiles(blocking, query_limit, table, queries, reach, out_scores, out_indices, counters):
    """Does what :func:`search_rows` does, with the same result, by way of the int8 tiles of the base.

    blocking and query_limit pick the micro-kernel, see isa.Isa.
    """
    norms = np.empty(queries.shape[0], np.float32)
    refused = row_norms(queries, norms)
    if refused >= 0:
        return refused
    base, tail = base_in(table), tail_in(table)
    batch, lists = make_batch(table, queries, norms, reach), make_lists(base, tail, out_scores.shape)
    work = np.zeros(3, np.int64)
    scan_vectors(tail, base.norm_bounds.shape[0], batch, lists)
    scan_tiles(blocking, query_limit, tiles_in(table), base, batch, lists, work)
    write_answers(lists, out_scores, out_indices)
    count(counters, queries, work)
    return -1


@kernel
def search_planes(blocking, query_limit, table, queries, reach, out_scores, out_indices, counters):
    """Does what :func:`search_tiles` does, with the same arguments and result, for few queries."""
    norms = np.empty(queries.shape[0], np.float32)
    refused = row_norms(queries, norms)
    if refused >= 0:
        return refused
    base, tail = base_in(table), tail_in(table)
    batch, lists = make_batch(table, queries, norms, reach), make_lists(base, tail, out_scores.shape)
    work = np.zeros(3, np.int64)
    scan_rows(tail, base.norm_bounds.shape[0], batch, lists)
    scan_planes(blocking, query_limit, tiles_in(table), base, batch, lists, work)
    write_answers(lists, out_scores, out_indices)
    count(counters, queries, work)
    return -1


@kernel
def make_batch(table, queries, norms, reach):
    """The queries of one search and what holds for them."""
    words, bias, bias_bounds = masks_and_bias_in(table)
    return Batch(queries, norms, norms * np.float32(reach), words, bias, bias_bounds)


@kernel
def count(counters, queries, work):
    """Adds the work of a search to what all have done."""
    atomic_add(counters, 0, queries.shape[0])
    atomic_add(counters, 1, work[1])
    atomic_add(counters, 2, work[2])


@kernel
def make_lists(base, tail, shape):
    """Empty lists; k is cut to the number of rows."""
    batch, k = shape
    k = max(1, min(k, base.item_of_row.shape[0] + tail.item_of_row.shape[0]))
    # A longer buffer would let the threshold lag behind, a shorter one would be scored too often.
    keys = np.empty((batch, k + max(16, k // 3)), np.int64)
    counts = np.zeros(batch, np.int64)
    return Lists(k, keys, counts, counts.copy(), np.full(batch, NO_KEY))


@kernel
def write_answers(lists, out_scores, out_indices):
    """Writes every query's list, best first."""
    for query in range(lists.keys.shape[0]):
        write_answer(lists.keys[query], lists.counts[query], out_scores[query], out_indices[query])
