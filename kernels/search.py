"""One search, from queries to answer, in one call of a kernel: the portable and the fast form.

The arguments are flat arrays, because Numba takes a tuple of arrays apart more slowly than it takes arrays.
"""

# mypy: allow-untyped-defs

import numpy as np

from recserve.kernels.floats import scan_vectors
from recserve.kernels.jit import kernel
from recserve.kernels.packing import Tiles, row_norms
from recserve.kernels.planes import scan_planes
from recserve.kernels.rows import Batch, Lists, Rows, scan_rows
from recserve.kernels.tiles import scan_tiles
from recserve.kernels.topk import NO_KEY, write_answer


@kernel
def search_rows(
    base_vectors,
    base_item_of_row,
    base_norm_bounds,
    tail_vectors,
    tail_item_of_row,
    tail_norm_bounds,
    words,
    bias,
    bias_bounds,
    queries,
    reach,
    out_scores,
    out_indices,
    counters,
):
    """Writes the exact top-K of every query; returns the first query that is not valid, or −1.

    base, tail: the fields of rows.Rows, searched together · words: (1 or batch, n_words) uint32, those of the
    base, then those of the tail · bias, bias_bounds, queries: as in rows.Batch ·
    reach: float32, the largest cosine that is reckoned with, 1 to be exact · out_scores, out_indices:
    (batch, k) float32 and int32, overwritten · counters: (3,) int64, see tiles.scan_tiles.
    """
    norms = np.empty(queries.shape[0], np.float32)
    refused = row_norms(queries, norms)
    if refused >= 0:
        return refused
    base = Rows(base_vectors, base_item_of_row, base_norm_bounds)
    tail = Rows(tail_vectors, tail_item_of_row, tail_norm_bounds)
    batch = Batch(queries, norms, norms * reach, words, bias, bias_bounds)
    lists = make_lists(base, tail, out_scores.shape)
    scan_vectors(tail, base_norm_bounds.shape[0], batch, lists)
    scan_vectors(base, 0, batch, lists)
    write_answers(lists, out_scores, out_indices)
    return -1


@kernel
def search_tiles(
    blocking,
    query_limit,
    high,
    low,
    bounds,
    base_vectors,
    base_item_of_row,
    base_norm_bounds,
    tail_vectors,
    tail_item_of_row,
    tail_norm_bounds,
    words,
    bias,
    bias_bounds,
    queries,
    reach,
    out_scores,
    out_indices,
    counters,
):
    """Does what :func:`search_rows` does, with the same result, by way of the int8 tiles of the base.

    blocking and query_limit pick the micro-kernel, see isa.Isa; the next three are the fields of
    packing.Tiles.
    """
    norms = np.empty(queries.shape[0], np.float32)
    refused = row_norms(queries, norms)
    if refused >= 0:
        return refused
    tiles = Tiles(high, low, bounds)
    base = Rows(base_vectors, base_item_of_row, base_norm_bounds)
    tail = Rows(tail_vectors, tail_item_of_row, tail_norm_bounds)
    batch = Batch(queries, norms, norms * reach, words, bias, bias_bounds)
    lists = make_lists(base, tail, out_scores.shape)
    scan_vectors(tail, base_norm_bounds.shape[0], batch, lists)
    scan_tiles(blocking, query_limit, tiles, base, batch, lists, counters)
    write_answers(lists, out_scores, out_indices)
    return -1


@kernel
def search_planes(
    blocking,
    query_limit,
    high,
    low,
    bounds,
    base_vectors,
    base_item_of_row,
    base_norm_bounds,
    tail_vectors,
    tail_item_of_row,
    tail_norm_bounds,
    words,
    bias,
    bias_bounds,
    queries,
    reach,
    out_scores,
    out_indices,
    counters,
):
    """Does what :func:`search_tiles` does, with the same arguments and result, for few queries."""
    norms = np.empty(queries.shape[0], np.float32)
    refused = row_norms(queries, norms)
    if refused >= 0:
        return refused
    tiles = Tiles(high, low, bounds)
    base = Rows(base_vectors, base_item_of_row, base_norm_bounds)
    tail = Rows(tail_vectors, tail_item_of_row, tail_norm_bounds)
    batch = Batch(queries, norms, norms * reach, words, bias, bias_bounds)
    lists = make_lists(base, tail, out_scores.shape)
    scan_rows(tail, base_norm_bounds.shape[0], batch, lists)
    scan_planes(blocking, query_limit, tiles, base, batch, lists, counters)
    write_answers(lists, out_scores, out_indices)
    return -1


@kernel
def make_lists(base, tail, shape):
    """Empty lists; k is cut to the number of rows."""
    batch, k = shape
    k = max(1, min(k, base.item_of_row.shape[0] + tail.item_of_row.shape[0]))
    # A longer buffer would let the threshold lag behind, a shorter one would be scored too often.
    keys = np.empty((batch, k + max(32, k // 4)), np.int64)
    counts = np.zeros(batch, np.int64)
    return Lists(k, keys, counts, counts.copy(), np.full(batch, NO_KEY))


@kernel
def write_answers(lists, out_scores, out_indices):
    """Writes every query's list, best first."""
    for query in range(lists.keys.shape[0]):
        write_answer(lists.keys[query], lists.counts[query], out_scores[query], out_indices[query])
