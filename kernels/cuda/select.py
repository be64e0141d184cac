"""The largest keys of many, and their order.

Keys are distinct, apart from NO_KEY, which is never selected: so the k largest are one certain set, whichever
thread finds which, and every answer is the same in every run.
"""

# mypy: allow-untyped-defs

import numpy as np
from numba import cuda

from recserve.kernels.cuda.arithmetic import NO_KEY, cuda_kernel, item_of, score_of

DIGIT_BITS = 8
N_DIGITS = 256
FIRST_SHIFT = 64 - DIGIT_BITS


@cuda_kernel
def select_largest(keys, n_keys, segment, k, kept, bars):
    """Copies the ``k`` largest keys of each segment, in no order; what is missing is NO_KEY.

    keys: (batch, ≥ n_keys) uint64, cut into segments of ``segment`` · kept: (batch, ≥ n_segments · k) uint64,
    overwritten · bars: (batch,) uint64, written if there is one segment: no key left out reaches the bar, all
    kept ones do; NO_KEY if there are fewer than k. Grid: x the segments, y the batch.

    Radix selection, one digit of 8 bits at a time from the top. Invariant: the k-th largest key, if there is
    one, begins with the digits of `prefix` and is the `wanted`-th largest of those that do. What one thread
    writes between two barriers, no other reads before the second; the counts are sums of integers.
    """
    counts = cuda.shared.array(N_DIGITS, np.int32)
    shared_prefix = cuda.shared.array(1, np.uint64)
    shared_wanted = cuda.shared.array(1, np.int32)
    is_found = cuda.shared.array(1, np.int32)
    n_written = cuda.shared.array(1, np.int32)
    thread, n_threads = cuda.threadIdx.x, cuda.blockDim.x
    query = cuda.blockIdx.y
    first = cuda.blockIdx.x * segment
    end = min(first + segment, n_keys)
    if thread == 0:
        shared_prefix[0] = NO_KEY
        shared_wanted[0] = k
        is_found[0] = 0
        n_written[0] = 0
    for place in range(8):
        shift = np.uint64(FIRST_SHIFT - place * DIGIT_BITS)
        for digit in range(thread, N_DIGITS, n_threads):
            counts[digit] = 0
        cuda.syncthreads()
        prefix = shared_prefix[0]
        wanted = shared_wanted[0]
        for i in range(first + thread, end, n_threads):
            key = keys[query, i]
            rest = (
                key ^ prefix
            ) >> shift  # the digit, of a key that begins with the prefix; larger otherwise
            if key != NO_KEY and rest < np.uint64(N_DIGITS):
                cuda.atomic.add(counts, np.int32(rest), np.int32(1))
        cuda.syncthreads()
        for digit in range(thread, N_DIGITS, n_threads):
            if counts[digit] == 0:
                continue
            above = np.int32(0)
            for larger in range(digit + 1, N_DIGITS):
                above += counts[larger]
            if above < wanted and wanted <= above + counts[digit]:  # true for one digit, or for none
                shared_prefix[0] = prefix | (np.uint64(digit) << shift)
                shared_wanted[0] = wanted - above
                is_found[0] = np.int32(wanted == above + counts[digit])  # all keys of this digit are kept
        cuda.syncthreads()
        if is_found[0]:  # the same for the whole block: nobody writes it before the next barrier
            break
    bar = shared_prefix[0]
    if thread == 0 and cuda.gridDim.x == 1:
        bars[query] = bar
    for i in range(first + thread, end, n_threads):
        key = keys[query, i]
        if key != NO_KEY and key >= bar:
            position = cuda.atomic.add(n_written, 0, np.int32(1))
            kept[query, cuda.blockIdx.x * k + position] = key
    cuda.syncthreads()
    for i in range(n_written[0] + thread, k, n_threads):
        kept[query, cuda.blockIdx.x * k + i] = NO_KEY


@cuda_kernel
def write_answer(kept, k, scores, indices):
    """Writes the ``k`` kept keys in order; what is missing in a short row is −inf and −1.

    kept: (batch, ≥ k) uint64, NO_KEY last · scores, indices: (batch, k) float32 and int32, overwritten. The
    place of a key is the number of larger ones. Grid: x the batch.
    """
    query = cuda.blockIdx.x
    for i in range(cuda.threadIdx.x, k, cuda.blockDim.x):
        key = kept[query, i]
        if key == NO_KEY:
            scores[query, i] = -np.inf
            indices[query, i] = -1
        else:
            place = 0
            for j in range(k):
                place += kept[query, j] > key
            scores[query, place] = score_of(key)
            indices[query, place] = item_of(key)
