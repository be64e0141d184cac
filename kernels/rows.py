"""The exact scan over float32 rows: the portable path, the same on every processor.

The rows are ordered by norm, largest first, so that a query stops where even the best direction could not
reach its list any more: by Cauchy–Schwarz no score exceeds |query| · |row|.
"""

# mypy: allow-untyped-defs

import numpy as np

from recserve.kernels.jit import kernel
from recserve.kernels.simd import dot, trailing_zeros
from recserve.kernels.topk import NO_KEY, keep_largest, make_key, score_of, write_answer

TILE = 32  # rows that share one mask word and one norm bound
BLOCK_TILES = 8  # 8 tiles of 64 floats are 64 KiB: they stay in the second-level cache for the whole batch


@kernel
def scan_rows(
    vectors, item_of_row, norm_bounds, words, bias, bias_bounds, queries, query_norms, out_scores, out_indices
):
    """Writes the exact top-K of every query over the rows that ``words`` allows.

    vectors: (n_rows, d) float32 · item_of_row: (n_rows,) int32 · norm_bounds: (n_tiles,) float32, falling ·
    words: (1 or batch, n_tiles) uint32, bit i of word t is row 32 t + i · bias: (n_items,) float32 or empty ·
    bias_bounds: (n_tiles,) float32, no bias of this tile or a later one is above it · queries: (batch, d)
    float32 · query_norms: (batch,) float32, at least the true norms · out_*: (batch, k), overwritten.
    """
    batch, k = out_scores.shape
    n_tiles = norm_bounds.shape[0]
    # A longer buffer would let the threshold lag behind, a shorter one would select too often.
    capacity = k + max(16, k // 4)
    keys = np.empty((batch, capacity), np.int64)
    counts = np.zeros(batch, np.int64)
    thresholds = np.full(batch, NO_KEY)
    for block in range(0, n_tiles, BLOCK_TILES):
        end = min(block + BLOCK_TILES, n_tiles)
        n_alive = 0
        for query in range(batch):
            best_possible = query_norms[query] * norm_bounds[block] + bias_bounds[block]
            if thresholds[query] != NO_KEY and best_possible < score_of(thresholds[query]):
                continue
            n_alive += 1
            for tile in range(block, end):
                word = words[query if words.shape[0] > 1 else 0, tile]
                while word:
                    row = tile * TILE + trailing_zeros(word)
                    word &= word - np.uint32(1)
                    item_index = item_of_row[row]
                    score = dot(vectors, row, queries, query)
                    if bias.shape[0]:
                        score += bias[item_index]
                    key = make_key(score, item_index)
                    if key > thresholds[query]:
                        keys[query, counts[query]] = key
                        counts[query] += 1
                        if counts[query] == capacity:
                            thresholds[query] = keep_largest(keys[query], capacity, k)
                            counts[query] = k
        if n_alive == 0:
            break
    for query in range(batch):
        write_answer(keys[query], counts[query], out_scores[query], out_indices[query])
