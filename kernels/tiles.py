"""The fast exact scan: an int8 first pass over tiles, float32 scores for the few items that pass.

The micro-kernel starts every accumulator at minus what the item must reach, so "may enter the list" is a sign
bit. An item that passes is only noted and its float32 row prefetched; scores are computed when a query's
buffer is full, and then raise its threshold. Tiles are in the order of falling norms, so queries finish early
one by one; the rest are packed together again, so that no block is scored for the dead.
"""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import numpy as np

from recserve.kernels.jit import kernel
from recserve.kernels.micro import passing_items
from recserve.kernels.packing import STEP_DIMS, padded_dim, quantise_queries
from recserve.kernels.rows import TILE, is_finished, score_row, shorten_list
from recserve.kernels.simd import prefetch_row, trailing_zeros
from recserve.kernels.topk import NO_KEY, score_of

MAX_CHUNK_TILES = 16  # 512 items of 64 codes are 32 KiB: they stay in the first-level cache for the batch
NEVER = np.int32(-(2**30))  # an accumulator that starts here stays negative
SPARE = 8  # free places without which a buffer is shortened to its best


class Codes(NamedTuple):
    """The quantised queries.

    words: (batch, n_steps) int32, four signed bytes each · inverse_steps, norms, residuals: (batch,)
    float32, 1/a, |q|/a and |p|/a of the proof in the packing module · offsets: (batch,) int32, what adding
    128 to every item code adds to the sum.
    """

    words: Any
    inverse_steps: Any
    norms: Any
    residuals: Any
    offsets: Any


@kernel
def scan_tiles(blocking, query_limit, tiles, rows, batch, lists, counters):
    """Does what rows.scan_rows does, from word 0 on and with the same result, by way of ``tiles``.

    blocking: picks the micro-kernel · query_limit: see isa.Isa · counters: (3,) int64, to which the numbers
    of tiles scanned (per query) and of rows scored in float32 are added, second and third.
    """
    vectors, _, norm_bounds = rows
    queries, norms, words, bias, bias_bounds = batch
    _, keys, counts, _, thresholds = lists
    codes = make_codes(query_limit, batch)
    code_words, tile_codes = codes.words, tiles.codes
    n_steps, n_queries = code_words.shape[1], blocking.n_queries
    n_blocks = -(-queries.shape[0] // n_queries)
    query_of_slot = np.full(n_blocks * n_queries, -1, np.int32)
    for query in range(queries.shape[0]):
        query_of_slot[query] = query
    packed = np.empty(query_of_slot.shape[0] * n_steps, np.int32)
    pack_slots(code_words, query_of_slot, n_queries, packed)
    starts = np.empty(query_of_slot.shape[0] * MAX_CHUNK_TILES, np.int32)
    passing = np.zeros(n_queries, np.uint32)

    union = join_words(words)
    first, n_tiles = 0, norm_bounds.shape[0]
    while first < n_tiles:
        # Thresholds are read once per chunk: short chunks while they still rise fast.
        end = min(n_tiles, first + min(MAX_CHUNK_TILES, 1 + first // 4))
        largest_bias = bias_bounds[1, first] if bias.shape[0] else np.float32(0.0)
        n_alive = drop_finished(query_of_slot, thresholds, norms, norm_bounds[first], largest_bias)
        if n_alive == 0:
            break
        if -(-n_alive // n_queries) < n_blocks:
            n_blocks = -(-n_alive // n_queries)
            close_ranks(query_of_slot)
            query_of_slot = query_of_slot[: n_blocks * n_queries]
            pack_slots(code_words, query_of_slot, n_queries, packed)
        fill_starts(starts, query_of_slot, first, end, tiles, codes, batch, lists)
        for tile in range(first, end):
            if union[tile] == 0:
                continue
            counters[1] += n_alive
            for block in range(n_blocks):
                slot = block * n_queries
                start = slot * MAX_CHUNK_TILES + tile - first
                hits = passing_items(
                    blocking,
                    tile_codes,
                    tile,
                    packed,
                    block,
                    n_steps,
                    starts,
                    start,
                    MAX_CHUNK_TILES,
                    passing,
                )
                while hits:
                    hit = trailing_zeros(hits)
                    hits &= hits - np.uint32(1)
                    query = query_of_slot[slot + hit]
                    bits = passing[hit] & words[query if words.shape[0] > 1 else 0, tile]
                    while bits:
                        row = tile * TILE + trailing_zeros(bits)
                        bits &= bits - np.uint32(1)
                        prefetch_row(vectors, row)
                        keys[query, counts[query]] = row
                        counts[query] += 1
                        if counts[query] == keys.shape[1]:
                            raise_threshold(query, rows, batch, lists, counters)
        first = end
    for query in range(queries.shape[0]):
        score_noted(query, rows, batch, lists, counters)


@kernel
def join_words(words):
    """The rows that some query may get."""
    if words.shape[0] == 1:
        return words[0].copy()
    union = np.zeros(words.shape[1], np.uint32)
    for query in range(words.shape[0]):
        for word in range(words.shape[1]):
            union[word] |= words[query, word]
    return union


@kernel
def make_codes(query_limit, batch):
    """Quantises the queries of a batch."""
    n_queries, dim = batch.queries.shape
    words = np.empty((n_queries, padded_dim(dim) // STEP_DIMS), np.int32)
    factors = np.empty((3, n_queries), np.float32)
    offsets = np.empty(n_queries, np.int32)
    codes = Codes(words, factors[0], factors[1], factors[2], offsets)
    quantise_queries(
        batch.queries,
        batch.norms,
        query_limit,
        codes.words,
        codes.inverse_steps,
        codes.norms,
        codes.residuals,
        codes.offsets,
    )
    return codes


@kernel
def drop_finished(query_of_slot, thresholds, norms, norm_bound, largest_bias):
    """Frees the slots of the queries that are finished (−1); returns how many are not."""
    n_alive = 0
    for slot in range(query_of_slot.shape[0]):
        query = query_of_slot[slot]
        if query < 0:
            continue
        if is_finished(thresholds[query], norms[query], norm_bound, largest_bias):
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
def pack_slots(words, query_of_slot, n_queries, packed):
    """Lays the codes of the slots out as the micro-kernel reads them: flat [block][step][query]."""
    n_steps = words.shape[1]
    for slot in range(query_of_slot.shape[0]):
        query = query_of_slot[slot]
        first = slot // n_queries * n_queries * n_steps + slot % n_queries
        for step in range(n_steps):
            packed[first + step * n_queries] = words[query, step] if query >= 0 else 0


@kernel
def fill_starts(starts, query_of_slot, first, end, tiles, codes, batch, lists):
    """Writes where the accumulators start: minus the least sum of codes that may reach the threshold.

    The formula, its error and the margin are in the docstring of the packing module.
    """
    _, tile_inverse_steps, tile_residuals, code_norms = tiles
    _, inverse_steps, norms, residuals, offsets = codes
    thresholds, bias_bounds = lists.thresholds, batch.bias_bounds
    dim = batch.queries.shape[1]
    limit = np.float32(2**15 * dim)
    margin = np.int32(2 + dim // 32)
    for slot in range(query_of_slot.shape[0]):
        query = query_of_slot[slot]
        begin = slot * MAX_CHUNK_TILES - first
        if query < 0 or thresholds[query] == NO_KEY:
            starts[begin + first : begin + end] = NEVER if query < 0 else -NEVER
            continue
        threshold = score_of(thresholds[query])
        inverse_step, norm, residual = inverse_steps[query], norms[query], residuals[query]
        offset = offsets[query] - margin
        for tile in range(first, end):
            needed = threshold - bias_bounds[0, tile] if bias_bounds.shape[1] else threshold
            value = needed * inverse_step * tile_inverse_steps[tile]
            value -= norm * tile_residuals[tile] + residual * code_norms[tile]
            value = min(max(value, -limit), limit)
            starts[begin + tile] = -offset - np.int32(np.floor(value))


@kernel
def score_noted(query, rows, batch, lists, counters):
    """Turns the noted rows of a query into keys, and keeps those above its threshold."""
    vectors, item_of_row, _ = rows
    queries, bias = batch.queries, batch.bias
    keys, threshold = lists.keys, lists.thresholds[query]
    kept = lists.n_scored[query]
    counters[2] += lists.counts[query] - kept
    for i in range(kept, lists.counts[query]):
        row = keys[query, i]
        key = score_row(vectors, row, item_of_row[row], queries, query, bias)
        keys[query, kept] = key
        kept += key > threshold  # no branch: nobody could predict it
    lists.counts[query] = kept
    lists.n_scored[query] = kept


@kernel
def raise_threshold(query, rows, batch, lists, counters):
    """Empties the full buffer of a query: scores what is noted and, if little is gained, keeps the best."""
    score_noted(query, rows, batch, lists, counters)
    too_few_free = lists.counts[query] > lists.keys.shape[1] - SPARE
    if lists.thresholds[query] == NO_KEY or too_few_free:
        shorten_list(lists.keys, lists.counts, lists.thresholds, query, lists.k)
        lists.n_scored[query] = lists.counts[query]
