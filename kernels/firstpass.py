"""What the int8 scans share: quantised queries, where accumulators start, and the noted rows.

A micro-kernel starts every accumulator at minus what the item must reach, so "may enter the list" is a sign
bit. An item that passes is only noted and its float32 row prefetched; scores are computed when a query's
buffer is full, and then raise its threshold.
"""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import numpy as np

from recserve.kernels.jit import kernel
from recserve.kernels.micro import NEVER
from recserve.kernels.packing import STEP_DIMS, coarse_slack, padded_dim, quantise_queries
from recserve.kernels.rows import is_finished, score_row, shorten_list
from recserve.kernels.topk import NO_KEY, score_of

MAX_CHUNK_TILES = 16  # thresholds are read once per chunk of tiles
SPARE = 8  # free places without which a buffer is shortened to its best


class Codes(NamedTuple):
    """The quantised queries.

    words: (batch, n_steps) int32, four signed bytes each · factors: (batch, 4) float32, 1/a, |q|/a, |p|/a and
    |b| of the proof in the packing module · sums: (batch,) int32, Σb.
    """

    words: Any
    factors: Any
    sums: Any


@kernel
def make_codes(query_limit, batch):
    """Quantises the queries of a batch."""
    n_queries, dim = batch.queries.shape
    words = np.empty((n_queries, padded_dim(dim) // STEP_DIMS), np.int32)
    codes = Codes(words, np.empty((n_queries, 4), np.float32), np.empty(n_queries, np.int32))
    quantise_queries(batch.queries, batch.norms, query_limit, codes.words, codes.factors, codes.sums)
    return codes


@kernel
def next_chunk(first, n_tiles):
    """The end of the chunk that begins at ``first``: short chunks while thresholds still rise fast."""
    return min(n_tiles, first + min(MAX_CHUNK_TILES, 1 + first // 4))


@kernel
def drop_finished(query_of_slot, thresholds, reaches, norm_bound, largest_bias):
    """Frees the slots of the queries that are finished (−1); returns how many are not."""
    n_alive = 0
    for slot in range(query_of_slot.shape[0]):
        query = query_of_slot[slot]
        if query < 0:
            continue
        if is_finished(thresholds[query], reaches[query], norm_bound, largest_bias):
            query_of_slot[slot] = -1
        else:
            n_alive += 1
    return n_alive


@kernel
def fill_starts(
    starts, query_of_slot, coarse, first, end, dim, thresholds, factors, sums, bounds, bias_bounds
):
    """Writes where the accumulators of every slot start: minus the least sum that may reach its threshold.

    starts: (n_slots, MAX_CHUNK_TILES) int32, column t − first belongs to tile t · query_of_slot: (n_slots,)
    int32, −1 for a free slot · coarse: (n_slots,) bool, whether the sums are those of the upper halves alone
    · factors, sums: of Codes · bounds: of packing.Tiles. The formulas, their errors and the margin are in the
    docstring of the packing module.
    """
    # Views that begin at 0: with indices that may not be negative, LLVM turns the loops into vector code.
    inverse_steps, residuals = bounds[0, first:end], bounds[1, first:end]
    code_norms, low_norms = bounds[2, first:end], bounds[3, first:end]
    biases = bias_bounds[0, first:end]
    limit = np.float32(2**15 * dim)
    margin = np.int32(2 + dim // 32)
    for slot in range(query_of_slot.shape[0]):
        query = query_of_slot[slot]
        row = starts[slot]
        if query < 0 or thresholds[query] == NO_KEY:
            row[:] = np.int32(NEVER if query < 0 else -NEVER)
            continue
        score = score_of(thresholds[query])
        inverse_step, norm, residual = factors[query, 0], factors[query, 1], factors[query, 2]
        offset = np.int32(128) * sums[query] - margin  # 128 is added to every code
        for i in range(end - first):
            needed = score - biases[i] if biases.shape[0] else score
            value = needed * inverse_step * inverse_steps[i]
            value -= norm * residuals[i] + residual * code_norms[i]
            value = min(max(value, -limit), limit)
            row[i] = np.int32(np.floor(value)) + np.int32(offset)
        if coarse[slot]:
            for i in range(end - first):
                slack = coarse_slack(factors[query, 3], sums[query], low_norms[i])
                row[i] = (row[i] - slack) >> 4
        for i in range(end - first):
            row[i] = -row[i]


@kernel
def score_noted(query, vectors, item_of_row, queries, bias, keys, counts, n_scored, threshold, counters):
    """Turns the noted rows of a query into keys, and keeps those above its threshold."""
    kept = n_scored[query]
    counters[2] += counts[query] - kept
    for i in range(kept, counts[query]):
        row = keys[query, i]
        key = score_row(vectors, row, item_of_row[row], queries, query, bias)
        keys[query, kept] = key
        kept += key > threshold  # no branch: nobody could predict it
    counts[query] = kept
    n_scored[query] = kept


@kernel
def raise_threshold(
    query, vectors, item_of_row, queries, bias, keys, counts, n_scored, thresholds, k, counters
):
    """Empties the full buffer of a query: scores what is noted and, if little is gained, keeps the best."""
    threshold = thresholds[query]
    score_noted(query, vectors, item_of_row, queries, bias, keys, counts, n_scored, threshold, counters)
    if threshold == NO_KEY or counts[query] > keys.shape[1] - SPARE:
        shorten_list(keys, counts, thresholds, query, k)
        n_scored[query] = counts[query]
