"""How many users two items share."""

# mypy: allow-untyped-defs

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks
from recserve.kernels.checks import Exclude
from recserve.kernels.jit import kernel


def co_occurrences(by_user: Exclude, by_item: Exclude, first: int, last: int) -> npt.NDArray[np.float32]:
    """Returns how many users had both items, (last − first, n_items) float32, for the items first..last−1.

    by_user: (indptr (n_users + 1,) int64, item_indices int32), each item of a user once · by_item: the same
    pairs the other way round. The count of an item with itself is its number of users. Raises InvalidRequest
    where an argument does not fit.
    """
    n_items = len(by_item[0]) - 1
    indptr, item_indices = checks.check_interactions(by_user, n_items)
    item_indptr, user_indices = checks.check_interactions(by_item, len(indptr) - 1)
    if not 0 <= first <= last <= n_items:
        raise InvalidRequest("first and last", found=(first, last), expected=f"0 to {n_items}, ascending")
    counts = np.zeros((last - first, n_items), np.float32)
    _count_rows(indptr, item_indices, item_indptr, user_indices, first, counts)
    return counts


@kernel
def _count_rows(indptr, item_indices, item_indptr, user_indices, first, counts):
    for row in range(counts.shape[0]):
        for position in range(item_indptr[first + row], item_indptr[first + row + 1]):
            user = user_indices[position]
            for other in range(indptr[user], indptr[user + 1]):
                counts[row, item_indices[other]] += np.float32(1.0)
