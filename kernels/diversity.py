"""Slates that are good as a whole: greedy choice between high scores and items unlike those already chosen.

Similarity is the cosine of the item vectors; a zero vector is similar to nothing but itself.
"""

# mypy: allow-untyped-defs

from typing import Any

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks
from recserve.kernels.caps import Caps, check_caps, count_item, refuse_full
from recserve.kernels.jit import kernel
from recserve.kernels.simd import dot

Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]

# Below it, an item is a combination of those already chosen, up to the rounding of float32 vectors.
MIN_RESIDUAL = 1e-6


def mmr(
    scores: Scores,
    candidates: Indices,
    vectors: Scores,
    k: int,
    *,
    diversity: float,
    caps: Caps | None = None,
    n_pinned: Indices | None = None,
) -> Indices:
    """Returns (batch, k) int32: the item indices of slates by maximal marginal relevance, in order of choice.

    scores, candidates: (batch, n) float32 and int32, as a search returns them; −1 is no candidate · vectors:
    (n_items, d) float32 · diversity: from 0 to 1. Each next item has the largest (1 − diversity) · score −
    diversity · (its largest similarity to an item chosen before), and of equals the smallest item_index
    (Carbonell, Goldstein, "The Use of MMR", 1998). Short slates end in −1.

    caps: groups of which a slate takes a limited number · n_pinned: (batch,) int32, how many of the first
    candidates of a row are chosen before all others, in their order; they count for the caps, but are not
    refused by them. Raises InvalidRequest where an argument does not fit.
    """
    vectors = checks.check_matrix("vectors", vectors)
    arrays = check_choice(scores, candidates, len(vectors), k, diversity, caps, n_pinned)
    chosen = np.empty((len(scores), arrays[2]), np.int32)
    _choose_mmr(vectors, *arrays, chosen)
    return chosen


def dpp(
    scores: Scores,
    candidates: Indices,
    vectors: Scores,
    k: int,
    *,
    diversity: float,
    caps: Caps | None = None,
    n_pinned: Indices | None = None,
) -> Indices:
    """Returns (batch, k) int32: the item indices of slates by greedy MAP of a determinantal point process.

    Arguments as in :func:`mmr`. Each next item adds most to (1 − diversity) · Σ scores + diversity · log
    det of the similarities of the slate; of equals the smallest item_index comes first. Where every
    candidate left is a combination of those chosen, the rest follow by score (Chen, Zhang, Zhou, "Fast
    Greedy MAP Inference for Determinantal Point Process", 2018: O(k² n) per slate). With diversity 0 this
    is the order of the scores.
    """
    vectors = checks.check_matrix("vectors", vectors)
    arrays = check_choice(scores, candidates, len(vectors), k, diversity, caps, n_pinned)
    chosen = np.empty((len(scores), arrays[2]), np.int32)
    _choose_dpp(vectors, *arrays, chosen)
    return chosen


def check_choice(
    scores: Scores,
    candidates: Indices,
    n_items: int,
    k: int,
    weight: float,
    caps: Caps | None,
    n_pinned: Indices | None,
    name: str = "diversity",
) -> tuple[Any, ...]:
    """Returns the arguments that every kernel of this kind has, in their order.

    They are scores, candidates, k, the weight as float32, the arrays of the caps, n_pinned.
    """
    for which, array, dtype in (("scores", scores, np.float32), ("candidates", candidates, np.int32)):
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 2:
            expected = f"{np.dtype(dtype)} of shape (batch, n)"
            raise InvalidRequest(which, found=checks.kind_of(array), expected=expected)
    if scores.shape != candidates.shape:
        raise InvalidRequest(
            "candidates",
            found=checks.kind_of(candidates),
            expected=f"shape {scores.shape}, as the scores have",
        )
    if not 0.0 <= weight <= 1.0:
        raise InvalidRequest(name, found=weight, expected="a number from 0 to 1")
    pinned = np.zeros(len(scores), np.int32) if n_pinned is None else n_pinned
    if not isinstance(pinned, np.ndarray) or pinned.dtype != np.int32 or pinned.shape != (len(scores),):
        raise InvalidRequest("n_pinned", found=checks.kind_of(pinned), expected="int32 of shape (batch,)")
    arrays = (np.ascontiguousarray(array) for array in (scores, candidates, pinned))
    scores, candidates, pinned = map(checks.read_only, arrays)
    wrong = _what_is_wrong(scores, candidates, pinned, max(n_items, 1))
    if wrong == NO_ITEM:
        checks.check_items("candidates", np.maximum(candidates, 0).ravel(), max(n_items, 1))
    if wrong == NOT_FINITE:
        raise InvalidRequest("scores", found="NaN or infinite", expected="a finite score for every candidate")
    if wrong == PINNED:
        raise InvalidRequest("n_pinned", found=pinned.tolist(), expected="at most the candidates of a row")
    groups = check_caps(caps, n_items)
    return scores, candidates, checks.check_k(k), np.float32(weight), *groups, pinned


# What _what_is_wrong finds; one pass of a kernel takes a tenth of the time of NumPy's six.
FINE, NO_ITEM, NOT_FINITE, PINNED = 0, 1, 2, 3


@kernel
def _what_is_wrong(scores, candidates, n_pinned, n_items):
    wrong = FINE
    for slate in range(candidates.shape[0]):
        n_there = candidates.shape[1]
        for i in range(candidates.shape[1]):
            item = candidates[slate, i]
            if item >= n_items:
                return NO_ITEM
            if item < 0:
                n_there = min(n_there, i)
            elif not np.isfinite(scores[slate, i]):
                wrong = NOT_FINITE
        if wrong == FINE and not 0 <= n_pinned[slate] <= n_there:
            wrong = PINNED
    return wrong


def unit_scores(scores: Scores, items: Indices, n_pinned: Indices | None = None) -> Scores:
    """Puts the scores of each row on 0 to 1, so that a weight means the same for every model and user.

    scores, items: (batch, n); no candidate (−1) has 0, and neither have the first n_pinned, (batch,) int32.
    """
    pinned = np.zeros(len(scores), np.int32) if n_pinned is None else n_pinned
    scaled = np.empty_like(scores)
    _scale(*map(checks.read_only, (scores, items, pinned)), scaled)
    return scaled


@kernel
def _scale(scores, items, n_pinned, scaled):
    for row in range(scores.shape[0]):
        low, high = np.float32(np.inf), np.float32(-np.inf)
        for i in range(n_pinned[row], scores.shape[1]):
            if items[row, i] >= 0:
                low, high = min(low, scores[row, i]), max(high, scores[row, i])
        span = max(high - low, np.float32(1e-12))
        for i in range(scores.shape[1]):
            is_ranked = items[row, i] >= 0 and i >= n_pinned[row]
            scaled[row, i] = (scores[row, i] - low) / span if is_ranked else np.float32(0.0)


@kernel
def _precedes(gain, item, best_gain, best_item):
    """Whether a candidate comes before the best one so far: by gain, then by the smaller item_index."""
    return gain > best_gain or (gain == best_gain and item < best_item)


@kernel
def take(place, n_pinned, gains, candidates, slate, indptr, groups, left, free):
    """Takes the candidate for this place: the next pinned one, or the best; −1 where none is left."""
    best = place if place < n_pinned else -1
    if best < 0:
        for i in range(candidates.shape[1]):
            if free[i] and (
                best < 0 or _precedes(gains[i], candidates[slate, i], gains[best], candidates[slate, best])
            ):
                best = i
    settle(best, candidates, slate, indptr, groups, left, free)
    return best


@kernel
def settle(best, candidates, slate, indptr, groups, left, free):
    """Notes that ``best`` is taken, −1 being none, and refuses what its groups have no place for any more."""
    if best >= 0:
        free[best] = False
        if count_item(candidates[slate, best], indptr, groups, left):
            refuse_full(candidates, slate, indptr, groups, left, free)


@kernel
def _cosine(i, j, candidates, slate, vectors, inverse):
    """Returns the similarity of two candidates; ``inverse`` keeps 1 / norm of those that were asked for."""
    for one in (i, j):
        if inverse[one] < 0:
            item = candidates[slate, one]
            square = dot(vectors, item, vectors, item)
            inverse[one] = np.float32(1.0) / np.sqrt(square) if square > 0 else np.float32(0.0)
    product = dot(vectors, candidates[slate, i], vectors, candidates[slate, j])
    return product * inverse[i] * inverse[j]


# Both methods are lazy: a gain can only fall while the slate grows, so one from before is a bound, and only
# those that could be the best are brought up to date (Minoux, "Accelerated greedy algorithms", 1978; for
# determinants: Hemmi et al., "Lazy and Fast Greedy MAP Inference for DPP", 2022). What is chosen is the same.


@kernel
def _choose_mmr(vectors, scores, candidates, k, diversity, cap_indptr, cap_groups, limits, n_pinned, chosen):
    n = candidates.shape[1]
    inverse, gains, largest = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    known, picked = np.empty(n, np.int64), np.empty(k, np.int64)
    relevance = np.float32(1.0) - diversity
    for slate in range(candidates.shape[0]):
        left = limits.copy()
        free = candidates[slate] >= 0
        refuse_full(candidates, slate, cap_indptr, cap_groups, left, free)
        inverse[:], largest[:], known[:] = -1.0, -np.inf, 0
        for i in range(n):
            gains[i] = relevance * scores[slate, i] if free[i] else np.float32(0.0)
        for place in range(k):
            best = place if place < n_pinned[slate] else -1
            for i in range(0 if best >= 0 else n):
                if not free[i]:
                    continue
                # The first similarity may be below 0: no gain before it is a bound.
                is_bound = known[i] > 0 or place == 0 or diversity == 0
                item = candidates[slate, i]
                if (
                    is_bound
                    and best >= 0
                    and not _precedes(gains[i], item, gains[best], candidates[slate, best])
                ):
                    continue
                if diversity > 0:
                    for p in range(known[i], place):
                        cosine = _cosine(i, picked[p], candidates, slate, vectors, inverse)
                        largest[i] = max(largest[i], cosine)
                        gains[i] = relevance * scores[slate, i] - diversity * largest[i]
                    known[i] = place
                if best < 0 or _precedes(gains[i], item, gains[best], candidates[slate, best]):
                    best = i
            settle(best, candidates, slate, cap_indptr, cap_groups, left, free)
            chosen[slate, place] = candidates[slate, best] if best >= 0 else -1
            picked[place] = best


@kernel
def _choose_dpp(vectors, scores, candidates, k, diversity, cap_indptr, cap_groups, limits, n_pinned, chosen):
    n = candidates.shape[1]
    inverse, gains = np.empty(n, np.float32), np.empty(n)
    factor = np.empty((n, min(k, n)))  # row i: of the Cholesky factor of the similarities
    known, picked = np.empty(n, np.int64), np.empty(k, np.int64)  # how much of a row is known; its columns
    residuals = np.empty(n)  # what det grows by if this item is chosen next
    for slate in range(candidates.shape[0]):
        left = limits.copy()
        free = candidates[slate] >= 0
        refuse_full(candidates, slate, cap_indptr, cap_groups, left, free)
        inverse[:], residuals[:], known[:] = -1.0, 1.0, 0
        for i in range(n):
            gains[i] = (1.0 - diversity) * scores[slate, i] if free[i] else 0.0
        # Where the scores fall, what was never brought up to date stands in order behind what was.
        n_touched = n_pinned[slate] if _falls(scores[slate], n_pinned[slate]) else n
        rank = 0  # of the similarities of those chosen: a pinned copy of another adds none
        independent = diversity > 0
        for place in range(k):
            best = place if place < n_pinned[slate] else -1
            for i in range(n if best < 0 and independent else 0):
                if i >= n_touched:
                    if free[i] and best >= 0 and gains[i] < gains[best]:
                        break
                    n_touched = i + 1
                if free[i] and (
                    best < 0
                    or _precedes(gains[i], candidates[slate, i], gains[best], candidates[slate, best])
                ):
                    _grow_factor(
                        i, rank, candidates, slate, vectors, inverse, picked, factor, known, residuals
                    )
                    gains[i] = (1.0 - diversity) * scores[slate, i]
                    gains[i] += diversity * np.log(residuals[i]) if residuals[i] > MIN_RESIDUAL else -np.inf
                    if best < 0 or _precedes(
                        gains[i], candidates[slate, i], gains[best], candidates[slate, best]
                    ):
                        best = i
            if place >= n_pinned[slate] and independent and (best < 0 or gains[best] == -np.inf):
                independent, best = False, -1
                for i in range(n):
                    gains[i] = scores[slate, i]
            if independent:
                settle(best, candidates, slate, cap_indptr, cap_groups, left, free)
            else:
                best = take(
                    place, n_pinned[slate], gains, candidates, slate, cap_indptr, cap_groups, left, free
                )
            chosen[slate, place] = candidates[slate, best] if best >= 0 else -1
            if independent:
                _grow_factor(
                    best, rank, candidates, slate, vectors, inverse, picked, factor, known, residuals
                )
                if residuals[best] > MIN_RESIDUAL:
                    picked[rank] = best
                    rank += 1


@kernel
def _falls(scores, start):
    """Whether no score from ``start`` on is larger than the one before it."""
    n_rises = 0
    for i in range(start + 1, scores.shape[0]):
        n_rises += scores[i] > scores[i - 1]
    return n_rises == 0


@kernel
def _grow_factor(i, rank, candidates, slate, vectors, inverse, picked, factor, known, residuals):
    """Brings row ``i`` of the factor, and its residual, up to date with the first ``rank`` of ``picked``."""
    for p in range(known[i], rank):
        other = picked[p]
        value = np.float64(_cosine(i, other, candidates, slate, vectors, inverse))
        for column in range(p):
            value -= factor[i, column] * factor[other, column]
        # The residual that the other item had when it was picked stays its own.
        factor[i, p] = value / np.sqrt(residuals[other])
        residuals[i] -= factor[i, p] ** 2
    known[i] = rank
