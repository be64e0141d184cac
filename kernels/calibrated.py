"""Slates whose categories are in the proportions of what the user had.

Steck, "Calibrated Recommendations", 2018 (doi:10.1145/3240323.3240372). An item with c categories gives
each of them 1/c.
"""

# mypy: allow-untyped-defs

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks
from recserve.kernels.caps import Caps, refuse_full
from recserve.kernels.diversity import check_choice, take
from recserve.kernels.jit import kernel

Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]

# Of the target in the shares of a slate: without it one missing category makes the divergence infinite.
SMOOTHING = 0.01
MIN_GAIN = 1e-9


class Categories(NamedTuple):
    """Item i is in ``groups[indptr[i]:indptr[i + 1]]``, each once, of ``n_groups``.

    indptr: (n_items + 1,) int64, groups: int32.
    """

    indptr: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int32]
    n_groups: int


def calibrated(
    scores: Scores,
    candidates: Indices,
    categories: Categories,
    targets: Scores,
    k: int,
    *,
    weight: float,
    caps: Caps | None = None,
    n_pinned: Indices | None = None,
) -> Indices:
    """Returns (batch, k) int32: the item indices of slates, in order of choice; short ones end in −1.

    scores, candidates, caps, n_pinned: as for ``mmr`` · targets: (batch, n_groups) float32, the shares p of
    the categories that the user wants, a row of sum 1, or of zeros for the best scores alone · weight: from 0
    to 1. Each next item adds most to (1 − weight) · Σ scores − weight · KL(p ‖ 0.99 q + 0.01 p), q being the
    shares of the slate; of equals the smallest item_index comes first. Greedy choice need not end well: where
    the slate of the best scores is worth more, it is taken, so that no weight makes a slate worse.
    """
    n_items = len(categories.indptr) - 1
    arrays = check_choice(scores, candidates, n_items, k, weight, caps, n_pinned, name="weight")
    indptr, groups = checks.check_lists("categories", (categories.indptr, categories.groups), n_items)
    checks.check_items("category groups", groups, categories.n_groups)
    shape = (len(scores), categories.n_groups)
    if not isinstance(targets, np.ndarray) or targets.dtype != np.float32 or targets.shape != shape:
        found = checks.kind_of(targets)
        raise InvalidRequest("targets", found=found, expected=f"float32 of shape {shape}")
    if not (np.isfinite(targets) & (targets >= 0)).all():
        raise InvalidRequest("targets", found="negative or not finite", expected="shares")
    chosen = np.empty((len(scores), arrays[2]), np.int32)
    lists = (indptr, groups, np.ascontiguousarray(targets))
    _choose(*arrays, *(checks.read_only(array) for array in lists), chosen)
    return chosen


@kernel
def _choose(
    scores, candidates, k, weight, cap_indptr, cap_groups, limits, n_pinned, indptr, groups, targets, chosen
):
    plain = np.empty(k, np.int32)
    for slate in range(candidates.shape[0]):
        liked = np.flatnonzero(targets[slate] > 0)
        steer = np.float64(weight) if liked.shape[0] else 0.0
        caps = (cap_indptr, cap_groups, limits, n_pinned[slate])
        worth = _choose_one(
            scores, candidates, slate, steer, steer, caps, indptr, groups, targets, liked, chosen[slate]
        )
        if steer > 0:
            other = _choose_one(
                scores, candidates, slate, 0.0, steer, caps, indptr, groups, targets, liked, plain
            )
            # The same items in another order are worth the same, but for the last bits.
            if other > worth + MIN_GAIN:
                chosen[slate] = plain


@kernel
def _choose_one(scores, candidates, slate, steer, weight, caps, indptr, groups, targets, liked, chosen):
    """Chooses by ``steer``; returns what the slate is worth by ``weight``, but for what no choice changes."""
    cap_indptr, cap_groups, limits, n_pinned = caps
    n, target = candidates.shape[1], targets[slate]
    counts, logs = np.zeros(target.shape[0]), np.zeros(target.shape[0])
    gains = np.empty(n)
    left = limits.copy()
    free = candidates[slate] >= 0
    refuse_full(candidates, slate, cap_indptr, cap_groups, left, free)
    mass, total = 0.0, 0.0
    fit = _fit(counts, mass, target, liked, logs)
    for place in range(chosen.shape[0]):
        grown = _fit(counts, mass + 1.0, target, liked, logs) if steer > 0 else fit
        for i in range(n):
            if free[i]:
                gains[i] = (1.0 - steer) * np.float64(scores[slate, i])
                if steer > 0:
                    item = candidates[slate, i]
                    new = _fit_with(item, fit, grown, counts, mass, target, logs, indptr, groups)
                    gains[i] += steer * (new - fit)
        best = take(place, n_pinned, gains, candidates, slate, cap_indptr, cap_groups, left, free)
        chosen[place] = candidates[slate, best] if best >= 0 else -1
        if best < 0:
            continue
        item = candidates[slate, best]
        total += np.float64(scores[slate, best])
        if indptr[item] < indptr[item + 1]:
            for j in range(indptr[item], indptr[item + 1]):
                counts[groups[j]] += 1.0 / (indptr[item + 1] - indptr[item])
            mass += 1.0
        fit = _fit(counts, mass, target, liked, logs)
    return (1.0 - weight) * total + weight * fit


@kernel
def _fit(counts, mass, target, liked, logs):
    """Returns Σ p log(0.99 q + 0.01 p), the part of −KL that the slate decides; keeps the logarithms."""
    total = 0.0
    for group in liked:
        share = counts[group] / mass if mass > 0 else 0.0
        logs[group] = np.log((1.0 - SMOOTHING) * share + SMOOTHING * target[group])
        total += target[group] * logs[group]
    return total


@kernel
def _fit_with(item, fit, grown, counts, mass, target, logs, indptr, groups):
    """Returns the fit with ``item``: that of ``mass`` + 1, corrected for the categories of the item."""
    start, end = indptr[item], indptr[item + 1]
    if start == end:
        return fit
    for j in range(start, end):
        wanted = target[groups[j]]
        if wanted > 0:
            share = (counts[groups[j]] + 1.0 / (end - start)) / (mass + 1.0)
            grown += wanted * (np.log((1.0 - SMOOTHING) * share + SMOOTHING * wanted) - logs[groups[j]])
    return grown
