"""The exact scan over float32 rows: the portable path, and the path of items that came after the build.

Rows are grouped in tiles of 32 that share a mask word and a norm bound. The bounds fall from tile to tile, so
a query stops where even the best direction could not reach its list any more: by Cauchy–Schwarz no score
exceeds |query| · |row|.
"""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import numpy as np

from recserve.kernels.jit import kernel
from recserve.kernels.simd import dot, trailing_zeros
from recserve.kernels.topk import NO_KEY, make_key, raise_bar, score_of

TILE = 32
BLOCK_TILES = 8  # 8 tiles of 64 floats are 64 KiB: they stay in the second-level cache for the whole batch


class Rows(NamedTuple):
    """A run of rows: one part of an index.

    vectors: (n_rows, d) float32 · item_of_row: (n_rows,) int32 · norm_bounds: (n_tiles,) float32, falling:
    |query| · norm_bounds[t] is at least every computed dot product of tile t and of all after it.
    """

    vectors: Any
    item_of_row: Any
    norm_bounds: Any


class Batch(NamedTuple):
    """What is asked: queries that share one search.

    queries: (batch, d) float32 · norms: (batch,) float32, at least the true norms · reaches: (batch,)
    float32, no row of norm x is expected to score above reach · x: the norms, or less where the caller
    accepts to miss some rows · words: (1 or batch, n_words) uint32, the rows that may be answered, see the
    masks module · bias: (n_items,) float32 or empty · bias_bounds: (2, n_words) float32 as in
    masks.bias_bounds, or (2, 0).
    """

    queries: Any
    norms: Any
    reaches: Any
    words: Any
    bias: Any
    bias_bounds: Any


class Lists(NamedTuple):
    """What is found so far, per query.

    k: the wanted length · keys: (batch, capacity > k) int64, counts[q] of them in use, the first n_scored[q]
    being keys and the rest row numbers that still await their score · thresholds: (batch,) int64, no key
    below it can be among the best k; NO_KEY as long as fewer than k are known.
    """

    k: Any
    keys: Any
    counts: Any
    n_scored: Any
    thresholds: Any


# Tuples of arrays are handed from scan to scan only. A kernel that is called for every query or row takes
# arrays and numbers: Numba counts the references of a tuple's arrays at every call, atomically.


@kernel
def is_finished(threshold, reach, norm_bound, largest_bias):
    """True if no row under these bounds can enter a list whose threshold this is.

    Rounding is monotone: what is added to a bound here is added to no more than the bound in a score.
    """
    return threshold != NO_KEY and reach * norm_bound + largest_bias < score_of(threshold)


@kernel
def score_row(vectors, row, item_index, queries, query, bias):
    """The key of one row for one query: the only place where a final score is computed."""
    score = dot(vectors, row, queries, query)
    if bias.shape[0]:
        score += bias[item_index]
    return make_key(score, item_index)


@kernel
def shorten_list(keys, counts, thresholds, query, k):
    """Keeps about the best k of a list of at least k keys, and raises its threshold."""
    counts[query], thresholds[query] = raise_bar(keys[query], counts[query], k, k // 32)


@kernel
def scan_rows(rows, first_word, batch, lists):
    """Adds to every query's list the keys of those rows that may be among its best.

    The mask words of these rows begin at ``first_word``. Leaves no row number in the lists.
    """
    vectors, item_of_row, norm_bounds = rows
    queries, _, reaches, words, bias, bias_bounds = batch
    k, keys, counts, n_scored, thresholds = lists
    n_tiles = norm_bounds.shape[0]
    for block in range(0, n_tiles, BLOCK_TILES):
        largest_bias = bias_bounds[1, first_word + block] if bias.shape[0] else np.float32(0.0)
        n_alive = 0
        for query in range(queries.shape[0]):
            if is_finished(thresholds[query], reaches[query], norm_bounds[block], largest_bias):
                continue
            n_alive += 1
            for tile in range(block, min(block + BLOCK_TILES, n_tiles)):
                bits = words[query if words.shape[0] > 1 else 0, first_word + tile]
                while bits:
                    row = tile * TILE + trailing_zeros(bits)
                    bits &= bits - np.uint32(1)
                    key = score_row(vectors, row, item_of_row[row], queries, query, bias)
                    if key > thresholds[query]:
                        keys[query, counts[query]] = key
                        counts[query] += 1
                        if counts[query] == keys.shape[1]:
                            shorten_list(keys, counts, thresholds, query, k)
        if n_alive == 0:
            break
    for query in range(queries.shape[0]):
        n_scored[query] = counts[query]
