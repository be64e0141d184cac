"""The fast scan for few queries: their time is that of reading the catalogue, so it reads half of the codes.

The upper halves of the codes bound a sum well enough where few items come near the threshold, as in a
catalogue without structure. Where too many pass them, the scan reads whole codes for a while.
"""

# mypy: allow-untyped-defs

import numpy as np

from recserve.kernels.firstpass import (
    MAX_CHUNK_TILES,
    drop_finished,
    fill_starts,
    make_codes,
    next_chunk,
    raise_threshold,
    score_noted,
)
from recserve.kernels.jit import kernel
from recserve.kernels.rows import TILE
from recserve.kernels.simd import prefetch_row, trailing_zeros
from recserve.kernels.stream import next_passing_tile
from recserve.kernels.topk import NO_KEY

COARSE_SHARE = 3  # one tile in so many may have an item that passes
FINE_CHUNKS = 8  # read whole before the upper halves are tried again


@kernel
def scan_planes(blocking, query_limit, tiles, rows, batch, lists, counters):
    """Does what tiles.scan_tiles does, with the same result, query by query on each chunk of tiles."""
    # Taken apart once: Numba counts the references of an array at every use of a tuple's field.
    vectors, item_of_row, norm_bounds = rows
    queries, _, reaches, words, bias, bias_bounds = batch
    k, keys, counts, n_scored, thresholds = lists
    high, low, bounds = tiles
    code_words, factors, sums = make_codes(query_limit, batch)
    (n_queries, dim), n_tiles, n_pairs = queries.shape, norm_bounds.shape[0], code_words.shape[1] // 2
    starts = np.empty((n_queries, MAX_CHUNK_TILES), np.int32)
    flat_starts, passing = starts.reshape(-1), np.zeros(1, np.uint32)
    query_of_slot = np.arange(n_queries).astype(np.int32)
    coarse, fine_until = np.zeros(n_queries, np.bool_), np.zeros(n_queries, np.int64)
    first, chunk = 0, 0
    while first < n_tiles:
        end = next_chunk(first, n_tiles)
        largest_bias = bias_bounds[1, first] if bias.shape[0] else np.float32(0.0)
        if drop_finished(query_of_slot, thresholds, reaches, norm_bounds[first], largest_bias) == 0:
            break
        for query in range(n_queries):
            coarse[query] = thresholds[query] != NO_KEY and chunk >= fine_until[query]
        fill_starts(
            starts, query_of_slot, coarse, first, end, dim, thresholds, factors, sums, bounds, bias_bounds
        )
        for query in range(n_queries):
            if query_of_slot[query] < 0:
                continue
            word_row = query if words.shape[0] > 1 else 0
            tile, n_scanned, n_passing = first, 0, 0
            while tile < end:
                stop = tile
                while stop < end and words[word_row, stop]:
                    stop += 1
                n_scanned += stop - tile
                while tile < stop:
                    tile = next_passing_tile(
                        blocking,
                        coarse[query],
                        high,
                        low,
                        tile,
                        stop,
                        code_words,
                        query,
                        n_pairs,
                        flat_starts,
                        query * MAX_CHUNK_TILES + tile - first,
                        passing,
                    )
                    if tile == stop:
                        break
                    bits = passing[0] & words[word_row, tile]
                    while bits:
                        row = tile * TILE + trailing_zeros(bits)
                        bits &= bits - np.uint32(1)
                        prefetch_row(vectors, row)
                        keys[query, counts[query]] = row
                        counts[query] += 1
                        if counts[query] == keys.shape[1]:
                            raise_threshold(
                                query,
                                vectors,
                                item_of_row,
                                queries,
                                bias,
                                keys,
                                counts,
                                n_scored,
                                thresholds,
                                k,
                                counters,
                            )
                    n_passing += 1
                    tile += 1
                tile = stop + 1  # the tile at which the run stopped has no allowed row
            counters[1] += n_scanned
            if coarse[query] and n_passing * COARSE_SHARE > n_scanned:
                fine_until[query] = chunk + FINE_CHUNKS
        first, chunk = end, chunk + 1
    for query in range(n_queries):
        threshold = thresholds[query]
        score_noted(query, vectors, item_of_row, queries, bias, keys, counts, n_scored, threshold, counters)
