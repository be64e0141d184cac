"""The total order of every answer, and the selection of the best under it.

**The order**: score descending, then item_index ascending. A candidate is one int64 *key*, larger is better:
the upper 32 bits are the float32 score as an integer of the same order, the lower 32 bits fall as item_index
grows. Integers have no ties to settle and no NaN, so every path that computes the same scores selects the
same items in the same order.
"""

# mypy: allow-untyped-defs

import numpy as np

from recserve.kernels.jit import kernel

NO_KEY = np.int64(np.iinfo(np.int64).min)  # below the key of every item, −inf scores included

RUN = 128  # keys whose order is counted: larger runs take longer than merging two of this length

_INT32_MAX = np.int32(0x7FFFFFFF)
_LOW_BITS = np.int64(0xFFFFFFFF)


@kernel
def make_key(score, item_index):
    """The key of one candidate; ``score`` is not NaN. −0.0 counts as 0.0, so that the two are a tie."""
    bits = np.float32(score + np.float32(0.0)).view(np.int32)
    if bits < 0:
        bits = bits ^ _INT32_MAX
    return (np.int64(bits) << np.int64(32)) | np.int64(_INT32_MAX - np.int32(item_index))


@kernel
def score_of(key):
    """The score in a key."""
    bits = np.int32(key >> np.int64(32))
    if bits < 0:
        bits = bits ^ _INT32_MAX
    return np.int32(bits).view(np.float32)


@kernel
def item_of(key):
    """The item_index in a key."""
    return _INT32_MAX - np.int32(key & _LOW_BITS)


@kernel
def keep_largest(keys, n, k):
    """Moves the ``k`` largest of ``keys[:n]`` to the front, in no order, and returns the smallest of them.

    Hoare's quickselect on distinct keys; 1 ≤ k ≤ n.
    """
    low, high = 0, n - 1
    while low < high:
        pivot = keys[(low + high) >> 1]
        left, right = low, high
        while left <= right:
            while keys[left] > pivot:
                left += 1
            while keys[right] < pivot:
                right -= 1
            if left <= right:
                keys[left], keys[right] = keys[right], keys[left]
                left += 1
                right -= 1
        if k - 1 <= right:
            high = right
        elif k - 1 >= left:
            low = left
        else:
            break
    smallest = keys[0]
    for i in range(1, k):
        smallest = min(smallest, keys[i])
    return smallest


@kernel
def raise_bar(keys, n, k, spare):
    """Drops keys of ``keys[:n]`` that are not among the ``k`` largest; returns how many stay and their bar.

    Between k and k + spare keys stay, all of them ≥ the bar and all dropped ones below it. Bisection on the
    values: a pass that counts has no branch to mispredict and runs in vector registers, which makes it
    several times faster than to partition. Keys are distinct; 1 ≤ k ≤ n.
    """
    low, high = keys[0], keys[0]
    for i in range(1, n):
        low = min(low, keys[i])
        high = max(high, keys[i])
    left = n
    while left > k + spare and low < high:
        middle = (
            (low >> 1) + (high >> 1) + (low & high & 1)
        )  # floor of the mean, where low + high may overflow
        if middle == low:
            middle = high
        count = 0
        for i in range(n):
            count += keys[i] >= middle
        if count >= k:
            low, left = middle, count
        else:
            high = middle - 1
    left = 0
    for i in range(n):
        key = keys[i]
        keys[left] = key
        left += key >= low
    return left, low


@kernel
def sort_descending(keys, n):
    """Sorts distinct ``keys[:n]``, largest first.

    A key of a run has as many before it as are larger, which is counted without a branch; runs are merged.
    """
    source, target = keys[:n], np.empty(n, np.int64)
    for start in range(0, n, RUN):
        run = source[start : start + RUN]
        for i in range(run.shape[0]):
            place = start
            for j in range(run.shape[0]):
                place += run[j] > run[i]
            target[place] = run[i]
    source, target = target, source
    width = RUN
    while width < n:
        for start in range(0, n, 2 * width):
            _merge(source, start, min(start + width, n), min(start + 2 * width, n), target)
        source, target = target, source
        width *= 2
    keys[:n] = source


@kernel
def _merge(source, start, middle, end, target):
    """Merges the sorted runs ``source[start:middle]`` and ``source[middle:end]``."""
    left, right = start, middle
    for place in range(start, end):
        if right == end or (left < middle and source[left] > source[right]):
            target[place] = source[left]
            left += 1
        else:
            target[place] = source[right]
            right += 1


@kernel
def write_answer(keys, n, out_scores, out_indices):
    """Writes the best of ``keys[:n]`` in order; what is missing in a short row is −inf and −1."""
    k = out_scores.shape[0]
    if n > k:
        keep_largest(keys, n, k)
        n = k
    sort_descending(keys, n)
    for i in range(n):
        out_scores[i] = score_of(keys[i])
        out_indices[i] = item_of(keys[i])
    out_scores[n:] = -np.inf
    out_indices[n:] = -1
