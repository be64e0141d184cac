"""The fast exact scan: an int8 first pass over tiles, float32 scores for the few items that pass.

The micro-kernel starts every accumulator at minus what the item must reach, so "may enter the list" is a
sign bit. An item that passes is only noted and its float32 row prefetched; scores are computed when a
query's buffer is full, and then raise its threshold. Tiles are in the order of falling norms, so queries
finish early one by one; the rest are packed together again, so that no block is scored for the dead.
"""

# mypy: allow-untyped-defs

import numpy as np

from recserve.kernels.jit import kernel
from recserve.kernels.micro import passing_items
from recserve.kernels.packing import STEP_DIMS, padded_dim, quantise_queries
from recserve.kernels.rows import TILE, is_finished, score_row
from recserve.kernels.simd import prefetch_row, trailing_zeros
from recserve.kernels.topk import NO_KEY, keep_largest, score_of

MAX_CHUNK_TILES = 16  # 512 items of 64 codes are 32 KiB: they stay in the first-level cache for the batch
NEVER = np.int32(-(2**30))  # an accumulator that starts here stays negative
SPARE = 8  # a buffer that has fewer free places after scoring selects its best k


@kernel
def scan_tiles(
    blocking,
    query_limit,
    tiles,
    rows,
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
):
    """Does what :func:`rows.scan_rows` does, with the same result, by way of ``tiles``.

    blocking: picks the micro-kernel · query_limit: see isa.Isa · counters: (2,) int64, to which the numbers
    of tiles scanned (per query) and of rows scored in float32 are added. The rest as in scan_rows.
    """
    batch, capacity = keys.shape
    n_steps = padded_dim(queries.shape[1]) // STEP_DIMS
    codes = np.empty((batch, n_steps), np.int32)
    factors = np.empty((3, batch), np.float32)
    offsets = np.empty(batch, np.int32)
    quantise_queries(queries, query_norms, query_limit, codes, factors[0], factors[1], factors[2], offsets)

    n_blocks = -(-batch // blocking.n_queries)
    query_of_slot = np.full(n_blocks * blocking.n_queries, -1, np.int32)
    query_of_slot[:batch] = np.arange(batch)
    packed = np.empty(query_of_slot.shape[0] * n_steps, np.int32)
    pack_slots(codes, query_of_slot, blocking.n_queries, packed)
    starts = np.empty(query_of_slot.shape[0] * MAX_CHUNK_TILES, np.int32)
    passing = np.zeros(blocking.n_queries, np.uint32)
    n_scored = counts.copy()  # keys[query, :n_scored] are keys; from there to counts they are rows

    tile, n_tiles = 0, rows.norm_bounds.shape[0]
    while tile < n_tiles:
        # Thresholds are read once per chunk: short chunks while they still rise fast.
        end = min(n_tiles, tile + min(MAX_CHUNK_TILES, 1 + tile // 4))
        largest_bias = bias_bounds[1, tile] if bias.shape[0] else np.float32(0.0)
        n_alive = drop_finished(query_of_slot, thresholds, query_norms, rows.norm_bounds[tile], largest_bias)
        if n_alive == 0:
            break
        if -(-n_alive // blocking.n_queries) < n_blocks:
            n_blocks = -(-n_alive // blocking.n_queries)
            close_ranks(query_of_slot)
            query_of_slot = query_of_slot[: n_blocks * blocking.n_queries]
            pack_slots(codes, query_of_slot, blocking.n_queries, packed)
        fill_starts(
            starts, query_of_slot, tile, end, tiles, bias_bounds, thresholds, factors, offsets, queries
        )
        for t in range(tile, end):
            if words.shape[0] == 1 and words[0, t] == 0:
                continue
            counters[0] += n_alive
            for block in range(n_blocks):
                slot = block * blocking.n_queries
                first_start = slot * MAX_CHUNK_TILES + t - tile
                if passing_items(
                    blocking,
                    tiles.codes,
                    t,
                    packed,
                    block,
                    n_steps,
                    starts,
                    first_start,
                    MAX_CHUNK_TILES,
                    passing,
                ):
                    for i in range(blocking.n_queries):
                        if passing[i] == 0:
                            continue
                        query = query_of_slot[slot + i]
                        bits = passing[i] & words[query if words.shape[0] > 1 else 0, t]
                        while bits:
                            row = t * TILE + trailing_zeros(bits)
                            bits &= bits - np.uint32(1)
                            prefetch_row(rows.vectors, row)
                            keys[query, counts[query]] = row
                            counts[query] += 1
                            if counts[query] == capacity:
                                raise_threshold(
                                    query,
                                    rows,
                                    queries,
                                    bias,
                                    k,
                                    keys,
                                    counts,
                                    n_scored,
                                    thresholds,
                                    counters,
                                )
        tile = end
    for query in range(batch):
        score_noted(query, rows, queries, bias, keys, counts, n_scored, thresholds, counters)


@kernel
def drop_finished(query_of_slot, thresholds, query_norms, norm_bound, largest_bias):
    """Frees the slots of the queries that are finished (−1); returns how many are not."""
    n_alive = 0
    for slot in range(query_of_slot.shape[0]):
        query = query_of_slot[slot]
        if query < 0:
            continue
        if is_finished(thresholds[query], query_norms[query], norm_bound, largest_bias):
            query_of_slot[slot] = -1
        else:
            n_alive += 1
    return n_alive


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
def pack_slots(codes, query_of_slot, n_queries, packed):
    """Lays the codes of the slots out as the micro-kernel reads them: flat [block][step][query]."""
    n_steps = codes.shape[1]
    for slot in range(query_of_slot.shape[0]):
        query = query_of_slot[slot]
        first = slot // n_queries * n_queries * n_steps + slot % n_queries
        for step in range(n_steps):
            packed[first + step * n_queries] = codes[query, step] if query >= 0 else 0


@kernel
def fill_starts(starts, query_of_slot, tile, end, tiles, bias_bounds, thresholds, factors, offsets, queries):
    """Writes where the accumulators start: minus the least sum of codes that may reach the threshold.

    The formula, its error and the margin are in the docstring of the packing module.
    """
    dim = queries.shape[1]
    limit = np.float32(2**15 * dim)
    margin = np.int32(2 + dim // 32)
    for slot in range(query_of_slot.shape[0]):
        query = query_of_slot[slot]
        first = slot * MAX_CHUNK_TILES - tile
        if query < 0 or thresholds[query] == NO_KEY:
            starts[first + tile : first + end] = NEVER if query < 0 else -NEVER
            continue
        threshold = score_of(thresholds[query])
        inverse, norm, residual = factors[0, query], factors[1, query], factors[2, query]
        offset = offsets[query] - margin
        for t in range(tile, end):
            needed = threshold - bias_bounds[0, t] if bias_bounds.shape[1] else threshold
            value = needed * inverse * tiles.inverse_steps[t]
            value -= norm * tiles.residuals[t] + residual * tiles.code_norms[t]
            value = min(max(value, -limit), limit)
            starts[first + t] = -offset - np.int32(np.floor(value))


@kernel
def score_noted(query, rows, queries, bias, keys, counts, n_scored, thresholds, counters):
    """Turns the noted rows of a query into keys, and keeps those above its threshold."""
    kept = n_scored[query]
    counters[1] += counts[query] - kept
    for i in range(kept, counts[query]):
        key = score_row(rows, keys[query, i], queries, query, bias)
        if key > thresholds[query]:
            keys[query, kept] = key
            kept += 1
    counts[query] = kept
    n_scored[query] = kept


@kernel
def raise_threshold(query, rows, queries, bias, k, keys, counts, n_scored, thresholds, counters):
    """Empties the full buffer of a query: scores what is noted and, if little is gained, keeps the best k."""
    first_time = thresholds[query] == NO_KEY
    score_noted(query, rows, queries, bias, keys, counts, n_scored, thresholds, counters)
    if first_time or counts[query] > keys.shape[1] - SPARE:
        thresholds[query] = keep_largest(keys[query], counts[query], k)
        counts[query] = k
        n_scored[query] = k
