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
    checks.check_items("candidates", np.maximum(candidates, 0).ravel(), max(n_items, 1))
    if not np.isfinite(scores[candidates >= 0]).all():
        raise InvalidRequest("scores", found="NaN or infinite", expected="a finite score for every candidate")
    if not 0.0 <= weight <= 1.0:
        raise InvalidRequest(name, found=weight, expected="a number from 0 to 1")
    pinned = np.zeros(len(scores), np.int32) if n_pinned is None else n_pinned
    if not isinstance(pinned, np.ndarray) or pinned.dtype != np.int32 or pinned.shape != (len(scores),):
        raise InvalidRequest("n_pinned", found=checks.kind_of(pinned), expected="int32 of shape (batch,)")
    there = np.cumprod(candidates >= 0, axis=1).sum(axis=1)
    if np.any((pinned < 0) | (pinned > there)):
        raise InvalidRequest("n_pinned", found=pinned.tolist(), expected="at most the candidates of a row")
    arrays = (np.ascontiguousarray(array) for array in (scores, candidates, pinned))
    scores, candidates, pinned = map(checks.read_only, arrays)
    groups = check_caps(caps, n_items)
    return scores, candidates, checks.check_k(k), np.float32(weight), *groups, pinned


def unit_scores(scores: Scores, items: Indices, n_pinned: Indices | None = None) -> Scores:
    """Puts the scores of each row on 0 to 1, so that a weight means the same for every model and user.

    scores, items: (batch, n); no candidate (−1) has 0, and neither have the first n_pinned, (batch,) int32.
    """
    ranked = items >= 0
    if n_pinned is not None:
        ranked &= np.arange(items.shape[1]) >= n_pinned[:, None]
    low = np.where(ranked, scores, np.inf).min(axis=1, keepdims=True)
    high = np.where(ranked, scores, -np.inf).max(axis=1, keepdims=True)
    span = np.maximum(high - low, np.float32(1e-12))
    scaled = np.zeros_like(scores)
    np.divide(scores - low, span, out=scaled, where=ranked)
    return scaled


@kernel
def _inverse_norms(candidates, vectors, slate, inverse):
    for i in range(candidates.shape[1]):
        item = candidates[slate, i]
        square = dot(vectors, item, vectors, item) if item >= 0 else np.float32(0.0)
        inverse[i] = np.float32(1.0) / np.sqrt(square) if square > 0 else np.float32(0.0)


@kernel
def _take_best(gains, candidates, slate, free):
    """Takes the free candidate with the largest gain, then the smallest item_index; −1 if none is left."""
    best = -1
    for i in range(candidates.shape[1]):
        if not free[i]:
            continue
        smaller_index = best >= 0 and candidates[slate, i] < candidates[slate, best]
        if best < 0 or gains[i] > gains[best] or (gains[i] == gains[best] and smaller_index):
            best = i
    if best >= 0:
        free[best] = False
    return best


@kernel
def take(place, n_pinned, gains, candidates, slate, indptr, groups, left, free):
    """Takes the candidate for this place: the next pinned one, or the best that no cap refuses."""
    if place < n_pinned:
        best = place
        free[best] = False
    else:
        best = _take_best(gains, candidates, slate, free)
    if best >= 0 and count_item(candidates[slate, best], indptr, groups, left):
        refuse_full(candidates, slate, indptr, groups, left, free)
    return best


@kernel
def _choose_mmr(vectors, scores, candidates, k, diversity, cap_indptr, cap_groups, limits, n_pinned, chosen):
    n = candidates.shape[1]
    inverse = np.empty(n, np.float32)
    gains, largest = np.empty(n, np.float32), np.empty(n, np.float32)
    for slate in range(candidates.shape[0]):
        _inverse_norms(candidates, vectors, slate, inverse)
        left = limits.copy()
        free = candidates[slate] >= 0
        for i in range(n):
            gains[i] = (np.float32(1.0) - diversity) * scores[slate, i] if free[i] else np.float32(0.0)
            largest[i] = -np.inf
        refuse_full(candidates, slate, cap_indptr, cap_groups, left, free)
        for place in range(k):
            best = take(place, n_pinned[slate], gains, candidates, slate, cap_indptr, cap_groups, left, free)
            chosen[slate, place] = candidates[slate, best] if best >= 0 else -1
            if best < 0 or diversity == 0:
                continue
            for i in range(n):
                if free[i]:
                    cosine = dot(vectors, candidates[slate, i], vectors, candidates[slate, best])
                    largest[i] = max(largest[i], cosine * inverse[i] * inverse[best])
                    relevance = (np.float32(1.0) - diversity) * scores[slate, i]
                    gains[i] = relevance - diversity * largest[i]


@kernel
def _choose_dpp(vectors, scores, candidates, k, diversity, cap_indptr, cap_groups, limits, n_pinned, chosen):
    n = candidates.shape[1]
    inverse, gains = np.empty(n, np.float32), np.empty(n)
    factor = np.empty((min(k, n), n))  # row p: the p-th row of the Cholesky factor of the similarities
    residuals = np.empty(n)  # what det grows by if this item is chosen next
    for slate in range(candidates.shape[0]):
        _inverse_norms(candidates, vectors, slate, inverse)
        left = limits.copy()
        free = candidates[slate] >= 0
        refuse_full(candidates, slate, cap_indptr, cap_groups, left, free)
        residuals[:] = 1.0
        rank = 0  # of the similarities of those chosen: a pinned copy of another adds none
        independent = True
        for place in range(k):
            any_independent = False
            for i in range(n):
                any_independent |= free[i] and residuals[i] > MIN_RESIDUAL
            independent &= any_independent or diversity == 0 or place < n_pinned[slate]
            for i in range(n):
                if not free[i]:
                    continue
                gains[i] = (1.0 - diversity) * scores[slate, i]
                if not independent:
                    gains[i] = scores[slate, i]
                elif diversity > 0:
                    gains[i] += diversity * np.log(residuals[i]) if residuals[i] > MIN_RESIDUAL else -np.inf
            best = take(place, n_pinned[slate], gains, candidates, slate, cap_indptr, cap_groups, left, free)
            chosen[slate, place] = candidates[slate, best] if best >= 0 else -1
            if best < 0 or not independent or diversity == 0 or residuals[best] <= MIN_RESIDUAL:
                continue
            root = np.sqrt(residuals[best])
            for i in range(n):
                # A pinned candidate needs its factor too, when its place comes.
                if free[i] or (place < i < n_pinned[slate]):
                    cosine = dot(vectors, candidates[slate, i], vectors, candidates[slate, best])
                    value = np.float64(cosine * inverse[i] * inverse[best])
                    for p in range(rank):
                        value -= factor[p, i] * factor[p, best]
                    factor[rank, i] = value / root
                    residuals[i] -= factor[rank, i] ** 2
            rank += 1
