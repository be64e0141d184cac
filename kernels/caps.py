"""How many items of one group a slate may have: groups, limits, and the counting inside a greedy choice."""

# mypy: allow-untyped-defs

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks
from recserve.kernels.jit import kernel


class Caps(NamedTuple):
    """At most ``limits[g]`` items of group g in one slate; an item may be in several groups, or in none.

    indptr: (n_items + 1,) int64, groups: int32, item i being in ``groups[indptr[i]:indptr[i + 1]]`` · limits:
    (n_groups,) int32.
    """

    indptr: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int32]
    limits: npt.NDArray[np.int32]


NO_CAPS = Caps(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.int32))


def check_caps(caps: Caps | None, n_items: int) -> Caps:
    """Returns the caps as read-only arrays, NO_CAPS for none; raises InvalidRequest when they do not fit."""
    if caps is None:
        caps = NO_CAPS
    else:
        indptr, groups = checks.check_lists("caps", (caps.indptr, caps.groups), n_items)
        limits = caps.limits
        if not isinstance(limits, np.ndarray) or limits.dtype != np.int32 or limits.ndim != 1:
            raise InvalidRequest("caps limits", found=checks.kind_of(limits), expected="a flat int32 array")
        checks.check_items("caps groups", groups, len(limits))
        caps = Caps(indptr, groups, limits)
    return Caps(*(checks.read_only(array) for array in caps))


@kernel
def count_item(item, indptr, groups, left):
    """Takes one place in each group of ``item``; returns whether one of them is full now."""
    is_full = False
    if left.shape[0]:
        for j in range(indptr[item], indptr[item + 1]):
            left[groups[j]] -= 1
            is_full |= left[groups[j]] <= 0
    return is_full


@kernel
def refuse_full(candidates, slate, indptr, groups, left, free):
    """Clears the free candidates of a slate that are in a group without a place."""
    if left.shape[0] == 0:
        return
    for i in range(candidates.shape[1]):
        if not free[i]:
            continue
        item = candidates[slate, i]
        for j in range(indptr[item], indptr[item + 1]):
            if left[groups[j]] <= 0:
                free[i] = False
                break
