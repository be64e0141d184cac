"""One search, from queries to answer, in one call of a kernel: the portable and the fast form."""

# mypy: allow-untyped-defs

import numpy as np

from recserve.kernels.jit import kernel
from recserve.kernels.packing import row_norms
from recserve.kernels.rows import scan_rows
from recserve.kernels.tiles import scan_tiles
from recserve.kernels.topk import NO_KEY, write_answer


@kernel
def search_rows(base, tail, words, bias, bias_bounds, queries, out_scores, out_indices, counters):
    """Writes the exact top-K of every query; returns the first query that is not valid, or −1.

    base, tail: rows.Rows, searched together · words: (1 or batch, n_words) uint32, those of the base, then
    those of the tail · bias: (n_items,) float32 or empty, and bias_bounds as in scan_rows · queries:
    (batch, d) float32 · out_scores, out_indices: (batch, k) float32 and int32, overwritten · counters: (2,)
    int64.
    """
    query_norms = np.empty(queries.shape[0], np.float32)
    refused = row_norms(queries, query_norms)
    if refused >= 0:
        return refused
    k, keys, counts, thresholds = make_lists(base, tail, out_scores.shape)
    n_base_words = base.norm_bounds.shape[0]
    scan_rows(tail, words, n_base_words, bias, bias_bounds, queries, query_norms, k, keys, counts, thresholds)
    scan_rows(base, words, 0, bias, bias_bounds, queries, query_norms, k, keys, counts, thresholds)
    write_answers(keys, counts, out_scores, out_indices)
    return -1


@kernel
def search_tiles(
    blocking,
    query_limit,
    tiles,
    base,
    tail,
    words,
    bias,
    bias_bounds,
    queries,
    out_scores,
    out_indices,
    counters,
):
    """Does what :func:`search_rows` does, with the same result, by way of the int8 tiles of the base.

    blocking and query_limit pick the micro-kernel; see isa.Isa.
    """
    query_norms = np.empty(queries.shape[0], np.float32)
    refused = row_norms(queries, query_norms)
    if refused >= 0:
        return refused
    k, keys, counts, thresholds = make_lists(base, tail, out_scores.shape)
    n_base_words = base.norm_bounds.shape[0]
    scan_rows(tail, words, n_base_words, bias, bias_bounds, queries, query_norms, k, keys, counts, thresholds)
    scan_tiles(
        blocking,
        query_limit,
        tiles,
        base,
        words,
        bias,
        bias_bounds,
        queries,
        query_norms,
        k,
        keys,
        counts,
        thresholds,
        counters,
    )
    write_answers(keys, counts, out_scores, out_indices)
    return -1


@kernel
def make_lists(base, tail, shape):
    """Returns k, cut to the number of rows, and empty lists: keys, counts, thresholds."""
    batch, k = shape
    k = max(1, min(k, base.item_of_row.shape[0] + tail.item_of_row.shape[0]))
    # A longer buffer would let the threshold lag behind, a shorter one would select too often.
    keys = np.empty((batch, k + max(16, k // 4)), np.int64)
    return k, keys, np.zeros(batch, np.int64), np.full(batch, NO_KEY)


@kernel
def write_answers(keys, counts, out_scores, out_indices):
    """Writes every query's list, best first."""
    for query in range(keys.shape[0]):
        write_answer(keys[query], counts[query], out_scores[query], out_indices[query])
