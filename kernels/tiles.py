"""The fast scan for many queries: int8 tiles, a block of queries at a time.

Tiles are in the order of falling norms, so queries finish early one by one; the rest are packed together
again, so that no block is scored for the dead.
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
from recserve.kernels.micro import join_planes, passing_items
from recserve.kernels.packing import CACHE_LINE_BYTES, STEP_DIMS
from recserve.kernels.rows import TILE
from recserve.kernels.simd import prefetch_row, trailing_zeros


@kernel
def scan_tiles(blocking, query_limit, tiles, rows, batch, lists, counters):
    """Does what rows.scan_rows does, from word 0 on and with the same result, by way of ``tiles``.

    blocking: picks the micro-kernel · query_limit: see isa.Isa · counters: (3,) int64, to which the numbers
    of tiles scanned (per query) and of rows scored in float32 are added, second and third.
    """
    # Taken apart once: Numba counts the references of an array at every use of a tuple's field.
    vectors, item_of_row, norm_bounds = rows
    queries, _, reaches, words, bias, bias_bounds = batch
    k, keys, counts, n_scored, thresholds = lists
    high, low, bounds = tiles
    code_words, factors, sums = make_codes(query_limit, batch)
    dim = queries.shape[1]
    n_steps, n_queries = code_words.shape[1], blocking.n_queries
    n_blocks = -(-queries.shape[0] // n_queries)
    query_of_slot = np.full(n_blocks * n_queries, -1, np.int32)
    for query in range(queries.shape[0]):
        query_of_slot[query] = query
    packed = np.empty(query_of_slot.shape[0] * n_steps, np.int32)
    pack_slots(code_words, query_of_slot, n_queries, packed)
    starts = np.empty((query_of_slot.shape[0], MAX_CHUNK_TILES), np.int32)
    flat_starts, coarse = starts.reshape(-1), np.zeros(query_of_slot.shape[0], np.bool_)
    item_codes = aligned_bytes(n_steps * TILE * STEP_DIMS)
    passing = np.zeros(n_queries, np.uint32)

    # Where all queries share their words, the slots share a row.
    word_stride = MAX_CHUNK_TILES if words.shape[0] > 1 else 0
    chunk_words = np.empty((query_of_slot.shape[0] if word_stride else 1, MAX_CHUNK_TILES), np.uint32)
    flat_words, union = chunk_words.reshape(-1), np.empty(MAX_CHUNK_TILES, np.uint32)
    n_lines = words.size // MAX_CHUNK_TILES
    lines = words.reshape(-1)[: n_lines * MAX_CHUNK_TILES].reshape(n_lines, MAX_CHUNK_TILES)
    first, n_tiles = 0, norm_bounds.shape[0]
    while first < n_tiles:
        end = next_chunk(first, n_tiles)
        largest_bias = bias_bounds[1, first] if bias.shape[0] else np.float32(0.0)
        n_alive = drop_finished(query_of_slot, thresholds, reaches, norm_bounds[first], largest_bias)
        if n_alive == 0:
            break
        if -(-n_alive // n_queries) < n_blocks:
            n_blocks = -(-n_alive // n_queries)
            close_ranks(query_of_slot)
            query_of_slot = query_of_slot[: n_blocks * n_queries]
            chunk_words = chunk_words[: query_of_slot.shape[0]]
            pack_slots(code_words, query_of_slot, n_queries, packed)
        fill_words(chunk_words, union, query_of_slot, first, end, words, lines)
        fill_starts(
            starts, query_of_slot, coarse, first, end, dim, thresholds, factors, sums, bounds, bias_bounds
        )
        for tile in range(first, end):
            if union[tile - first] == 0:
                continue
            counters[1] += n_alive
            join_planes(blocking, high, low, tile, n_steps // 2, item_codes)
            for block in range(n_blocks):
                slot = block * n_queries
                start = slot * MAX_CHUNK_TILES + tile - first
                hits = passing_items(
                    blocking,
                    item_codes,
                    packed,
                    block,
                    n_steps // 2,
                    flat_starts,
                    start,
                    MAX_CHUNK_TILES,
                    flat_words,
                    slot * word_stride + tile - first,
                    word_stride,
                    passing,
                )
                while hits:
                    hit = trailing_zeros(hits)
                    hits &= hits - np.uint32(1)
                    query = query_of_slot[slot + hit]
                    bits = passing[hit]
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
        first = end
    for query in range(queries.shape[0]):
        threshold = thresholds[query]
        score_noted(query, vectors, item_of_row, queries, bias, keys, counts, n_scored, threshold, counters)


@kernel
def aligned_bytes(n_bytes):
    """Bytes from the start of a cache line on."""
    spare = np.empty(n_bytes + CACHE_LINE_BYTES, np.uint8)
    start = -spare.ctypes.data % CACHE_LINE_BYTES
    return spare[start : start + n_bytes]


@kernel
def fill_words(chunk_words, union, query_of_slot, first, end, words, lines):
    """Copies the mask words of a chunk side by side, slot by slot, and joins them.

    chunk_words: (n_slots or 1, MAX_CHUNK_TILES) uint32, column t − first belongs to tile t · union:
    (MAX_CHUNK_TILES,) uint32, the rows that some query may get. Where they come from, the words of each query
    are in another page.
    """
    union[:] = 0
    for slot in range(chunk_words.shape[0]):
        query, row = query_of_slot[slot] if words.shape[0] > 1 else 0, chunk_words[slot]
        if query < 0:
            row[:] = 0
            continue
        line = (query * words.shape[1] + end) // MAX_CHUNK_TILES + 1
        if line < lines.shape[0]:
            prefetch_row(lines, line)
        tiles = words[query, first:end]
        for i in range(end - first):
            row[i] = tiles[i]
            union[i] |= tiles[i]


@kernel
def close_ranks(query_of_slot):
    """Moves the queries to the front, the free slots to the end."""
    n_alive = 0
    for slot in range(query_of_slot.shape[0]):
        query = query_of_slot[slot]
        if query >= 0:
            query_of_slot[slot] = -1
            query_of_slot[n_alive] = query
            n_alive += 1


@kernel
def pack_slots(words, query_of_slot, n_queries, packed):
    """Lays the codes of the slots out as the micro-kernel reads them: flat [block][step][query]."""
    n_steps = words.shape[1]
    for slot in range(query_of_slot.shape[0]):
        query = query_of_slot[slot]
        first = slot // n_queries * n_queries * n_steps + slot % n_queries
        for step in range(n_steps):
            packed[first + step * n_queries] = words[query, step] if query >= 0 else 0
