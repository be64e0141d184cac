"""Small data that several tests are made of."""

import numpy as np

from recserve.training.data import Histories


def histories(rows: list[list[int]], seconds: int = 1) -> Histories:
    """Returns the histories of users who had ``rows``, each event ``seconds`` after the one before."""
    row = np.repeat(np.arange(len(rows)), [len(items) for items in rows])
    flat = np.array([item for items in rows for item in items], np.int32)
    return Histories.from_sorted(row, flat, seconds * np.arange(len(flat), dtype=np.int64), len(rows))
