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
from recserve.kernels.topk import NO_KEY, keep_largest, make_key, score_of

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


@kernel
def is_finished(threshold, query_norm, norm_bound, largest_bias):
    """True if no row under these bounds can enter a list whose k-th key is ``threshold``.

    Rounding is monotone: what is added to a bound here is added to no more than the bound in a score.
    """
    return threshold != NO_KEY and query_norm * norm_bound + largest_bias < score_of(threshold)


@kernel
def scan_rows(rows, words, first_word, bias, bias_bounds, queries, query_norms, k, keys, counts, thresholds):
    """Adds to every query's list the keys of the rows that ``words`` allows and that may be among its best k.

    words: (1 or batch, n_words) uint32, bit i of words[:, first_word + t] is row 32 t + i · bias: (n_items,)
    float32 or empty · bias_bounds: (2, n_words) float32 as in :func:`masks.bias_bounds`, or empty · queries:
    (batch, d) float32 · query_norms: (batch,) float32, at least the true norms · keys: (batch, capacity > k)
    int64, with counts (batch,) keys in use · thresholds: (batch,) the k-th key so far, or NO_KEY.
    """
    batch, capacity = keys.shape
    n_tiles = rows.norm_bounds.shape[0]
    for block in range(0, n_tiles, BLOCK_TILES):
        n_alive = 0
        for query in range(batch):
            largest_bias = bias_bounds[1, first_word + block] if bias.shape[0] else np.float32(0.0)
            if is_finished(thresholds[query], query_norms[query], rows.norm_bounds[block], largest_bias):
                continue
            n_alive += 1
            for tile in range(block, min(block + BLOCK_TILES, n_tiles)):
                word = words[query if words.shape[0] > 1 else 0, first_word + tile]
                while word:
                    row = tile * TILE + trailing_zeros(word)
                    word &= word - np.uint32(1)
                    key = score_row(rows, row, queries, query, bias)
                    if key > thresholds[query]:
                        keys[query, counts[query]] = key
                        counts[query] += 1
                        if counts[query] == capacity:
                            thresholds[query] = keep_largest(keys[query], capacity, k)
                            counts[query] = k
        if n_alive == 0:
            break


@kernel
def score_row(rows, row, queries, query, bias):
    """The key of one row for one query: the only place where a final score is computed."""
    item_index = rows.item_of_row[row]
    score = dot(rows.vectors, row, queries, query)
    if bias.shape[0]:
        score += bias[item_index]
    return make_key(score, item_index)
