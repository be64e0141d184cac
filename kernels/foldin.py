"""Users unseen in training: their vector by one step of alternating least squares."""

# mypy: allow-untyped-defs

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks
from recserve.kernels.checks import Exclude
from recserve.kernels.jit import kernel

Vectors = npt.NDArray[np.float32]


def fold_in(vectors: Vectors, interactions: Exclude, weights: Vectors, reg: float) -> Vectors:
    """Returns the user vectors (n_users, d) float32 that implicit ALS gives to these interactions.

    vectors: (n_items, d) float32 item vectors · interactions: (indptr (n_users + 1,) int64, item_indices
    int32) · weights: float32, one per interaction, its confidence above that of an item never seen, ≥ 0 ·
    reg: > 0. A user u solves (YᵀY + Σ w yyᵀ + reg·I) u = Σ (1 + w) y over the items y of the history, in
    float64 (Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", 2008). A user
    without interactions is the zero vector. Raises InvalidRequest where an argument does not fit.
    """
    vectors = checks.check_matrix("vectors", vectors)
    indptr, item_indices = checks.check_interactions(interactions, len(vectors))
    if (
        not isinstance(weights, np.ndarray)
        or weights.dtype != np.float32
        or weights.shape != item_indices.shape
    ):
        raise InvalidRequest(
            "weights",
            found=f"of shape {np.shape(weights)}",
            expected=f"a float32 array of shape {item_indices.shape}",
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise InvalidRequest("weights", found="negative or not finite", expected="numbers of at least 0")
    if not (np.isfinite(reg) and reg > 0):
        raise InvalidRequest("reg", found=reg, expected="a number above 0")
    gram = vectors.T.astype(np.float64) @ vectors
    users = np.zeros((len(indptr) - 1, vectors.shape[1]), np.float32)
    _solve_users(vectors, gram, indptr, item_indices, checks.read_only(weights), float(reg), users)
    return users


@kernel
def _solve_users(vectors, gram, indptr, item_indices, weights, reg, users):
    dim = vectors.shape[1]
    left, right = np.empty((dim, dim)), np.empty(dim)
    for user in range(users.shape[0]):
        if indptr[user] == indptr[user + 1]:
            continue
        left[:] = gram
        right[:] = 0.0
        for i in range(dim):
            left[i, i] += reg
        for position in range(indptr[user], indptr[user + 1]):
            item_index, weight = item_indices[position], np.float64(weights[position])
            for i in range(dim):
                value = np.float64(vectors[item_index, i])
                right[i] += (1.0 + weight) * value
                for j in range(i + 1):
                    left[i, j] += weight * value * vectors[item_index, j]
        _solve_positive(left, right)
        for i in range(dim):
            users[user, i] = right[i]


@kernel
def _solve_positive(left, right):
    """Solves left · x = right in place by Cholesky; reads and overwrites the lower half of ``left``."""
    dim = right.shape[0]
    for i in range(dim):
        for j in range(i + 1):
            total = left[i, j]
            for m in range(j):
                total -= left[i, m] * left[j, m]
            left[i, j] = np.sqrt(total) if i == j else total / left[j, j]
    for i in range(dim):
        for j in range(i):
            right[i] -= left[i, j] * right[j]
        right[i] /= left[i, i]
    for i in range(dim - 1, -1, -1):
        for j in range(i + 1, dim):
            right[i] -= left[j, i] * right[j]
        right[i] /= left[i, i]
