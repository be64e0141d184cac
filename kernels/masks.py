"""Which rows may be answered: live items, filters and exclusions, as one bit per row.

A word is a uint32; bit i of word t stands for row 32 t + i of the index, which is ordered by norm and not by
item_index.
"""

# mypy: allow-untyped-defs

import numpy as np

from recserve.kernels.jit import brief_kernel, kernel
from recserve.kernels.rows import TILE


@kernel
def live_words(n_rows):
    """Words of ``n_rows`` rows that may all be answered; the bits beyond the last row are 0."""
    words = np.full((n_rows + TILE - 1) // TILE, 0xFFFFFFFF, np.uint32)
    if n_rows % TILE:
        words[-1] = np.uint32((1 << (n_rows % TILE)) - 1)
    return words


@kernel
def apply_allow(words, first_word, allow, item_of_row):
    """Clears the rows whose item ``allow`` forbids. words: (n, n_words) · allow: (n, n_items) bool.

    The words of these rows begin at ``first_word``.
    """
    n_rows = item_of_row.shape[0]
    for query in range(allow.shape[0]):
        for start in range(0, n_rows, TILE):
            bits = np.uint32(0)
            for lane in range(min(TILE, n_rows - start)):
                bits |= np.uint32(allow[query, item_of_row[start + lane]]) << np.uint32(lane)
            words[query, first_word + start // TILE] &= bits


@brief_kernel
def apply_exclude(words, indptr, item_indices, row_of_item):
    """Clears the excluded rows of each query; returns the offset of the first item out of range, or −1.

    words: (batch, n_tiles) uint32 · indptr: (batch + 1,) int64 · item_indices: (indptr[-1],) int32, in any
    order, repetitions allowed · row_of_item: (n_items,) int32, −1 for an item that was removed.
    """
    n_items = row_of_item.shape[0]
    for query in range(words.shape[0]):
        for offset in range(indptr[query], indptr[query + 1]):
            item_index = item_indices[offset]
            if item_index < 0 or item_index >= n_items:
                return offset
            row = row_of_item[item_index]
            if row < 0:
                continue
            words[query, row // TILE] &= ~(np.uint32(1) << np.uint32(row % TILE))
    return -1


@kernel
def bias_bounds(bias, item_of_row, first_word, bounds):
    """Writes, per tile, an upper bound of the bias of its rows, and the largest bias of these and later rows.

    bias: (n_items,) float32 · bounds: (2, n_words) float32, overwritten from first_word on. The first bound
    also pays for the rounding of score + bias, up to 2⁻²⁴ of the bias; what that rounding takes of the
    score is in γ.
    """
    rounding = np.float32(0.0)
    for item_index in range(bias.shape[0]):
        rounding = max(rounding, abs(bias[item_index]))
    rounding *= np.float32(2.0**-22)
    from_here_on = np.float32(-np.inf)
    n_rows = item_of_row.shape[0]
    for tile in range((n_rows + TILE - 1) // TILE - 1, -1, -1):
        largest = np.float32(-np.inf)
        for row in range(tile * TILE, min(tile * TILE + TILE, n_rows)):
            largest = max(largest, bias[item_of_row[row]])
        from_here_on = max(from_here_on, largest)
        bounds[0, first_word + tile] = largest + rounding
        bounds[1, first_word + tile] = from_here_on
