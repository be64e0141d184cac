"""Of a few items, those of a short list that are most like each: what a slate is explained with."""

# mypy: allow-untyped-defs

import numpy as np
import numpy.typing as npt

from recserve.kernels import checks
from recserve.kernels.jit import kernel
from recserve.kernels.simd import dot

Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]


def nearest_of(vectors: Scores, items: Indices, others: Indices, n: int) -> tuple[Indices, Scores]:
    """Returns the places in ``others`` of the ``n`` nearest to each of ``items``, and their cosines.

    vectors: (n_items, d) float32 · items: (m,) and others: (h,) int32 · both results are (m, min(n, h)),
    int32 and float32, the nearest first, of equals the first of ``others``. A zero vector is like nothing.
    Raises InvalidRequest where an argument does not fit.
    """
    vectors = checks.check_matrix("vectors", vectors)
    items = checks.check_items("items", items, len(vectors))
    others = checks.check_items("others", others, len(vectors))
    shape = (len(items), min(checks.check_k(n), len(others)))
    places, cosines = np.empty(shape, np.int32), np.empty(shape, np.float32)
    _nearest_of(vectors, items, others, places, cosines)
    return places, cosines


@kernel
def _inverse_norm(vectors, item):
    square = dot(vectors, item, vectors, item)
    return np.float32(1.0) / np.sqrt(square) if square > 0 else np.float32(0.0)


@kernel
def _nearest_of(vectors, items, others, places, cosines):
    inverse = np.empty(others.shape[0], np.float32)
    for j in range(others.shape[0]):
        inverse[j] = _inverse_norm(vectors, others[j])
    for i in range(items.shape[0]):
        own = _inverse_norm(vectors, items[i])
        n_kept = 0
        for j in range(others.shape[0]):
            cosine = dot(vectors, items[i], vectors, others[j]) * own * inverse[j]
            if n_kept < places.shape[1]:
                n_kept += 1
            elif n_kept == 0 or cosine <= cosines[i, n_kept - 1]:
                continue
            place = n_kept - 1
            while place > 0 and cosine > cosines[i, place - 1]:
                places[i, place], cosines[i, place] = places[i, place - 1], cosines[i, place - 1]
                place -= 1
            places[i, place], cosines[i, place] = j, cosine
