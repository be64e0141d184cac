"""Which rows may be answered: live items, filters and exclusions, as one bit per row.

A word is a uint32; bit i of word t stands for row 32 t + i of the index, which is ordered by norm and not by
item_index.
"""

# mypy: allow-untyped-defs

import numpy as np

from recserve.kernels.jit import kernel
from recserve.kernels.rows import TILE


@kernel
def live_words(n_rows):
    """Words of ``n_rows`` rows that may all be answered; the bits beyond the last row are 0."""
    words = np.full((n_rows + TILE - 1) // TILE, 0xFFFFFFFF, np.uint32)
    if n_rows % TILE:
        words[-1] = np.uint32((1 << (n_rows % TILE)) - 1)
    return words


@kernel
def apply_allow(words, allow, item_of_row):
    """Clears the rows whose item ``allow`` forbids. words: (n, n_tiles) · allow: (n, n_items) bool."""
    for query in range(allow.shape[0]):
        for tile in range(words.shape[1]):
            start = tile * TILE
            bits = np.uint32(0)
            for lane in range(min(TILE, item_of_row.shape[0] - start)):
                if allow[query, item_of_row[start + lane]]:
                    bits |= np.uint32(1) << np.uint32(lane)
            words[query, tile] &= bits


@kernel
def apply_exclude(words, indptr, item_indices, row_of_item):
    """Clears the excluded rows of each query; returns the offset of the first item out of range, or −1.

    words: (batch, n_tiles) uint32 · indptr: (batch + 1,) int64 · item_indices: (indptr[-1],) int32, in any
    order, repetitions allowed · row_of_item: (n_items,) int32.
    """
    n_items = row_of_item.shape[0]
    for query in range(words.shape[0]):
        for offset in range(indptr[query], indptr[query + 1]):
            item_index = item_indices[offset]
            if item_index < 0 or item_index >= n_items:
                return offset
            row = row_of_item[item_index]
            words[query, row // TILE] &= ~(np.uint32(1) << np.uint32(row % TILE))
    return -1


@kernel
def bias_bounds(bias, item_of_row, bounds):
    """Writes, per tile, the largest bias of its rows and of all rows after it. bounds: (n_tiles,) float32."""
    largest = np.float32(-np.inf)
    for tile in range(bounds.shape[0] - 1, -1, -1):
        for row in range(tile * TILE, min(tile * TILE + TILE, item_of_row.shape[0])):
            largest = max(largest, bias[item_of_row[row]])
        bounds[tile] = largest
