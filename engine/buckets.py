"""Which histories of a batch are encoded together, so that padding stays cheap."""

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import split_lengths

# The fastest of so many runs counts.
N_TIMED = 3
# However a measurement went. On one core: 45 for SASRec of width 64 with two blocks (33 µs a call and 1 µs a
# position in the graph), 4 for width 256 with four.
MIN_CALL_POSITIONS, MAX_CALL_POSITIONS = 2.0, 64.0


def length_groups(lengths: NDArray[np.int64], call_positions: float) -> list[NDArray[np.int64]]:
    """Splits rows of ``lengths`` (n,) into groups to be padded to their longest; returns row numbers.

    Each row is in one group; ``call_positions``: what another call of the encoder costs (kernels/padding.py).
    """
    rows, ends = split_lengths(lengths, call_positions)
    return [rows[start:end] for start, end in pairwise((0, *ends.tolist()))]


def measure_call(run: Callable[[int], object], length: int) -> float:
    """Returns how many positions cost as much as a call has besides; ``run(n)`` encodes a history of n items.

    A straight line through the times of one item and of ``length``, the fastest of a few each.
    """
    if length < 2:
        return MIN_CALL_POSITIONS
    shortest, longest = _fastest(run, 1), _fastest(run, length)
    per_position = (longest - shortest) / (length - 1)
    if per_position <= 0:
        return MAX_CALL_POSITIONS
    return min(max((shortest - per_position) / per_position, MIN_CALL_POSITIONS), MAX_CALL_POSITIONS)


def _fastest(run: Callable[[int], object], length: int) -> float:
    times = []
    for _ in range(N_TIMED):
        start = time.perf_counter()
        run(length)
        times.append(time.perf_counter() - start)
    return min(times)
