"""The mask words of one search on the device: what the whole batch may get, less what each query excludes."""

# mypy: allow-untyped-defs

import numpy as np
from numba import cuda

from recserve.kernels.cuda.arithmetic import ALL_ONES, cuda_kernel
from recserve.kernels.rows import TILE


@cuda_kernel
def spread_words(source, batch, words):
    """Copies one row of words, or one per query, to every query; rows beyond the batch get no item.

    source: (1 or batch, n_tiles) uint32 · words: (≥ batch, n_tiles) uint32, overwritten. Grid: x any, y the
    rows of words.
    """
    query = cuda.blockIdx.y
    for tile in range(
        cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, words.shape[1], cuda.gridDim.x * cuda.blockDim.x
    ):
        bits = np.uint32(0)
        if query < batch:
            bits = source[query if source.shape[0] > 1 else 0, tile]
        words[query, tile] = bits


@cuda_kernel
def clear_items(queries, item_indices, n, row_of_item, words):
    """Clears the rows of excluded items: of item_indices[i] for query queries[i], both (≥ n,) int32.

    row_of_item: (n_items,) int32 · words: (n_queries, n_tiles) uint32. Bits are cleared by atomic "and",
    which has one result in any order. Grid: x any.
    """
    for i in range(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, n, cuda.gridDim.x * cuda.blockDim.x):
        row = row_of_item[item_indices[i]]
        bit = np.uint32(1) << np.uint32(row % TILE)
        cuda.atomic.and_(words, (queries[i], row // TILE), np.uint32(bit ^ ALL_ONES))
