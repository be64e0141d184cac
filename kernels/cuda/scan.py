"""The first pass over the items, and the final scores of those that it keeps.

A *group* is the set of items that one thread reduces to its best: the rows of one lane in `group_tiles`
consecutive tiles. Each thread walks its rows, four queries at a time, and writes one key per query: nothing
is shared between threads, so that there is nothing to synchronise, to overflow or to race for.

**Why the best k groups suffice.** Let τ be the k-th largest of the groups' best keys. At least k items have
keys ≥ τ, so every item of the answer has one, and so has its group's best: its group is among the k groups
kept. (If there are fewer than k groups, all are kept.) With an upper bound in place of a key, the same holds
as long as the k-th score found is above the bound of every group that was left out, which the caller checks.

All arrays are C-order. `queries` and the outputs have whole fours of rows; rows beyond the batch are
zeros. words: (1 or as many as queries, n_tiles) uint32, bit r of word t stands for row r of tile t.
"""

# mypy: allow-untyped-defs

import numpy as np
from numba import cuda

from recserve.kernels.cuda.arithmetic import (
    LANES,
    NO_KEY,
    add,
    cuda_kernel,
    device_function,
    dot4,
    item_of,
    make_key,
    multiply,
    sum_lanes,
)
from recserve.kernels.cuda.launch import QUERIES_PER_THREAD
from recserve.kernels.rows import TILE

N_LANES = QUERIES_PER_THREAD * LANES  # the size of a local array must be a plain global
MINUS_INFINITY = np.float32(-np.inf)
STEPS_ERROR = np.float32(2.0**-20)  # these four: see layout.py
TERMS_ERROR = np.float32(1 + 2.0**-20)
SUMS_ERROR = np.float32(2)
FLOAT16_ERROR = np.float32(2.0**-21)
TINY = np.float32(2.0**-126)
ONE = np.float32(1)


@device_function
def words_of(words, query, tile):
    """The mask word of one tile."""
    return words[query if words.shape[0] > 1 else 0, tile]


@device_function
def is_any_allowed(words, first_query, tile):
    """True if a row of the tile may be answered to one of the queries of a thread."""
    bits = np.uint32(0)
    for i in range(QUERIES_PER_THREAD):
        bits |= words_of(words, first_query + i, tile)
    return bits != 0


@device_function
def is_allowed(words, query, tile, lane):
    """True if one row may be answered."""
    return (words_of(words, query, tile) >> np.uint32(lane)) & np.uint32(1) != 0


@cuda_kernel
def scan_float32(tiles, item_of_row, words, biased, bias, queries, group_tiles, keys):
    """Writes the largest key of every group: keys (n_queries, n_groups) uint64, overwritten.

    tiles: (n_tiles, d, 32) float32, d a multiple of 16 · biased: 0, or 1 if `bias`, (n_items,) float32,
    counts · queries: (n_queries, d) float32. Grid: x the fours of queries, y any; block: whole warps.
    """
    lanes = cuda.local.array(N_LANES, np.float32)
    best = cuda.local.array(QUERIES_PER_THREAD, np.uint64)
    n_tiles, dim = tiles.shape[0], tiles.shape[1]
    row = cuda.threadIdx.x % TILE
    first_query = cuda.blockIdx.x * QUERIES_PER_THREAD
    warps = cuda.blockDim.x // TILE
    first_tile = (cuda.blockIdx.y * warps + cuda.threadIdx.x // TILE) * group_tiles
    while first_tile < n_tiles:
        for i in range(QUERIES_PER_THREAD):
            best[i] = NO_KEY
        for tile in range(first_tile, min(first_tile + group_tiles, n_tiles)):
            if not is_any_allowed(words, first_query, tile):
                continue
            for lane in range(N_LANES):
                lanes[lane] = np.float32(0)
            for start in range(0, dim, LANES):
                for lane in range(LANES):
                    element = tiles[tile, start + lane, row]
                    for i in range(QUERIES_PER_THREAD):
                        product = multiply(element, queries[first_query + i, start + lane])
                        lanes[i * LANES + lane] = add(lanes[i * LANES + lane], product)
            for i in range(QUERIES_PER_THREAD):
                score = sum_lanes(lanes, i * LANES)
                if is_allowed(words, first_query + i, tile, row):
                    item_index = item_of_row[tile * TILE + row]
                    if biased:
                        score = add(score, bias[item_index])
                    best[i] = max(best[i], make_key(score, item_index))
        for i in range(QUERIES_PER_THREAD):
            keys[first_query + i, first_tile // group_tiles * TILE + row] = best[i]
        first_tile += cuda.gridDim.y * warps * group_tiles


@cuda_kernel
def scan_float16(codes, bounds, item_of_row, words, biased, bias, queries, norms, group_tiles, keys):
    """Writes per group a key of a bound that no score in the group exceeds, and of the group's first item.

    codes, bounds: layout.Coarse · norms: (n_queries,) float32, at least |q| · the rest as in scan_float32.
    """
    sums = cuda.local.array(QUERIES_PER_THREAD, np.float32)
    best = cuda.local.array(QUERIES_PER_THREAD, np.float32)
    n_tiles, dim = codes.shape[0], codes.shape[1]
    row = cuda.threadIdx.x % TILE
    first_query = cuda.blockIdx.x * QUERIES_PER_THREAD
    warps = cuda.blockDim.x // TILE
    first_tile = (cuda.blockIdx.y * warps + cuda.threadIdx.x // TILE) * group_tiles
    while first_tile < n_tiles:
        for i in range(QUERIES_PER_THREAD):
            best[i] = MINUS_INFINITY
        for tile in range(first_tile, min(first_tile + group_tiles, n_tiles)):
            if not is_any_allowed(words, first_query, tile):
                continue
            for i in range(QUERIES_PER_THREAD):
                sums[i] = np.float32(0)
            for start in range(0, dim, LANES):
                for lane in range(LANES):
                    element = np.float32(codes[tile, start + lane, row])
                    for i in range(QUERIES_PER_THREAD):
                        sums[i] += element * queries[first_query + i, start + lane]
            for i in range(QUERIES_PER_THREAD):
                if is_allowed(words, first_query + i, tile, row):
                    value = bounds[0, tile] * sums[i]
                    error = norms[first_query + i] * bounds[1, tile]
                    bound = (value + error) + (abs(value) + error) * FLOAT16_ERROR
                    bound += (bounds[0, tile] + ONE) * TINY
                    if biased:
                        bound = add(bound, bias[item_of_row[tile * TILE + row]])
                    best[i] = max(best[i], bound)
        write_bounds(best, item_of_row, first_query, first_tile, row, group_tiles, keys)
        first_tile += cuda.gridDim.y * warps * group_tiles


@cuda_kernel
def scan_int8(
    codes, bounds, item_of_row, words, biased, bias, queries, query_bounds, offsets, group_tiles, keys
):
    """Does what scan_float16 does, from int8 codes.

    codes: (n_tiles, n_words, 32) uint32 · bounds: layout.Coarse · queries: (n_queries, n_words) int32, four
    signed codes each · query_bounds: (3, n_queries) float32: the step a, |q|/a, |p|/a of packing · offsets:
    (n_queries,) int32, what adding 128 to every item code adds to the sum.
    """
    sums = cuda.local.array(QUERIES_PER_THREAD, np.int32)
    best = cuda.local.array(QUERIES_PER_THREAD, np.float32)
    n_tiles, n_words = codes.shape[0], codes.shape[1]
    row = cuda.threadIdx.x % TILE
    first_query = cuda.blockIdx.x * QUERIES_PER_THREAD
    warps = cuda.blockDim.x // TILE
    first_tile = (cuda.blockIdx.y * warps + cuda.threadIdx.x // TILE) * group_tiles
    while first_tile < n_tiles:
        for i in range(QUERIES_PER_THREAD):
            best[i] = MINUS_INFINITY
        for tile in range(first_tile, min(first_tile + group_tiles, n_tiles)):
            if not is_any_allowed(words, first_query, tile):
                continue
            for i in range(QUERIES_PER_THREAD):
                sums[i] = np.int32(0)
            for word in range(n_words):
                item_codes = codes[tile, word, row]
                for i in range(QUERIES_PER_THREAD):
                    sums[i] = dot4(item_codes, queries[first_query + i, word], sums[i])
            for i in range(QUERIES_PER_THREAD):
                query = first_query + i
                if is_allowed(words, query, tile, row):
                    terms = (
                        query_bounds[1, query] * bounds[1, tile] + query_bounds[2, query] * bounds[2, tile]
                    )
                    reach = np.float32(sums[i] - offsets[query]) + (terms * TERMS_ERROR + SUMS_ERROR)
                    value = reach * (query_bounds[0, query] * bounds[0, tile])
                    bound = value + abs(value) * STEPS_ERROR + TINY
                    if biased:
                        bound = add(bound, bias[item_of_row[tile * TILE + row]])
                    best[i] = max(best[i], bound)
        write_bounds(best, item_of_row, first_query, first_tile, row, group_tiles, keys)
        first_tile += cuda.gridDim.y * warps * group_tiles


@device_function
def write_bounds(best, item_of_row, first_query, first_tile, row, group_tiles, keys):
    """Writes the keys of one group; a group without an allowed row has none."""
    for i in range(QUERIES_PER_THREAD):
        key = NO_KEY
        if best[i] > MINUS_INFINITY:
            key = make_key(best[i], item_of_row[first_tile * TILE + row])
        keys[first_query + i, first_tile // group_tiles * TILE + row] = key


@cuda_kernel
def score_groups(
    tiles, item_of_row, row_of_item, words, biased, bias, queries, group_tiles, kept, n_kept, keys
):
    """Writes the key of every allowed item of the kept groups: keys (n_queries, n_kept · group_tiles) uint64.

    kept: (n_queries, ≥ n_kept) uint64: each names a group by one of its items · row_of_item: (n_items,)
    int32 · the rest as in scan_float32. Grid: x any, y the queries.
    """
    lanes = cuda.local.array(LANES, np.float32)
    n_tiles, dim = tiles.shape[0], tiles.shape[1]
    query = cuda.blockIdx.y
    slot = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while slot < n_kept * group_tiles:
        group_key = kept[query, slot // group_tiles]
        key = NO_KEY
        if group_key != NO_KEY:
            group_row = row_of_item[item_of(group_key)]
            tile = group_row // TILE // group_tiles * group_tiles + slot % group_tiles
            row = group_row % TILE
            if tile < n_tiles and is_allowed(words, query, tile, row):
                for lane in range(LANES):
                    lanes[lane] = np.float32(0)
                for start in range(0, dim, LANES):
                    for lane in range(LANES):
                        product = multiply(tiles[tile, start + lane, row], queries[query, start + lane])
                        lanes[lane] = add(lanes[lane], product)
                score = sum_lanes(lanes, 0)
                item_index = item_of_row[tile * TILE + row]
                if biased:
                    score = add(score, bias[item_index])
                key = make_key(score, item_index)
        keys[query, slot] = key
        slot += cuda.gridDim.x * cuda.blockDim.x
