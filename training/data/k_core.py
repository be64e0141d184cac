"""The k-core of the events: only users and items with enough interactions, among one another."""

import numpy as np
import polars as pl

from recserve.errors import DataError, InvalidRequest
from recserve.training.data.columns import ITEM_ID, USER_ID


def k_core(events: pl.DataFrame, min_user_interactions: int, min_item_interactions: int) -> pl.DataFrame:
    """Returns the largest part in which every user and item has the wanted number of interactions.

    The order of the rows stays. Raises InvalidRequest for a minimum below 1, DataError where nothing stays.
    """
    for name, minimum in (
        ("min_user_interactions", min_user_interactions),
        ("min_item_interactions", min_item_interactions),
    ):
        if minimum < 1:
            raise InvalidRequest(name, found=minimum, expected="an integer of 1 or more")
    if min_user_interactions == 1 and min_item_interactions == 1:
        return events
    users = _codes(events[USER_ID])
    items = _codes(events[ITEM_ID])
    rows = np.arange(events.height)
    while True:
        # Each removal may push another user or item below its minimum: repeat until nothing changes.
        enough = (np.bincount(users[rows])[users[rows]] >= min_user_interactions) & (
            np.bincount(items[rows])[items[rows]] >= min_item_interactions
        )
        if enough.all():
            break
        rows = rows[enough]
    if not len(rows):
        raise DataError(
            "k-core",
            found="empty",
            expected=f"users with {min_user_interactions} interactions, items with {min_item_interactions}",
            cure="Lower min_user_interactions or min_item_interactions.",
        )
    return events[rows]


def _codes(ids: pl.Series) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return (ids.rank("dense").to_numpy() - 1).astype(np.int64)
