"""Which histories of a batch are encoded together, so that padding stays cheap."""

import numpy as np
from numpy.typing import NDArray

# What one more call of the encoder costs, in positions (rows × length). Measured: 45 µs a call and 4.2 µs a
# position for SASRec of width 64 with two blocks, on one core.
CALL_POSITIONS = 12


def length_groups(
    lengths: NDArray[np.int64], call_positions: int = CALL_POSITIONS
) -> list[NDArray[np.int64]]:
    """Splits rows of ``lengths`` (n,) into groups to be padded to their longest; returns row numbers.

    Each row is in one group. From the longest row down, a group ends where padding the rest to its length
    would cost more positions than another call does.
    """
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order].tolist()
    groups = []
    start = 0
    for i, length in enumerate(descending):
        if (len(descending) - i) * (descending[start] - length) > call_positions:
            groups.append(order[start:i])
            start = i
    if len(order):
        groups.append(order[start:])
    return groups
