"""Users unseen in training: their vector by one step of alternating least squares."""

# mypy: allow-untyped-defs

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks
from recserve.kernels.checks import Exclude
from recserve.kernels.jit import kernel

Vectors = npt.NDArray[np.float32]
Gram = npt.NDArray[np.float64]

GRAM_BLOCK = 4096


def fold_in(
    vectors: Vectors,
    interactions: Exclude,
    weights: Vectors,
    reg: float,
    *,
    reg_exponent: float = 0.0,
    gram: Gram | None = None,
) -> Vectors:
    """Returns the user vectors (n_users, d) float32 that implicit ALS gives to these interactions.

    vectors: (n_items, d) float32 item vectors · interactions: (indptr (n_users + 1,) int64, item_indices
    int32) · weights: float32, one per interaction, its confidence above that of an item never seen, ≥ 0 ·
    reg: > 0 · reg_exponent: 0 to 1 · gram: YᵀY (d, d) float64 as :func:`gram_matrix` gives it, which a caller
    with few users at a time computes once. A user u solves (YᵀY + Σ w yyᵀ + λ·I) u = Σ (1 + w) y over the
    items y of the history, in float64 (Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback
    Datasets", 2008), with λ = reg · (n_items + Σ w)^reg_exponent (Rendle et al., "Revisiting the
    Performance of iALS on Item Recommendation Benchmarks", 2022, arXiv:2110.14037); an exponent of 0 is
    the plain one. A user without interactions is the zero vector; its vector depends on its own
    interactions alone, to the last bit. Raises InvalidRequest where an argument does not fit.
    """
    vectors = checks.check_matrix("vectors", vectors)
    indptr, item_indices = checks.check_interactions(interactions, len(vectors))
    check_weights(weights, item_indices.shape)
    check_reg(reg, reg_exponent)
    gram = gram_matrix(vectors) if gram is None else check_gram(gram, vectors.shape[1])
    users = np.zeros((len(indptr) - 1, vectors.shape[1]), np.float32)
    _solve_users(
        vectors,
        checks.read_only(gram),
        indptr,
        item_indices,
        checks.read_only(weights),
        float(reg),
        float(reg_exponent),
        users,
    )
    return users


def fold_in_shares(
    vectors: Vectors,
    item_indices: npt.NDArray[np.int32],
    weights: Vectors,
    targets: npt.NDArray[np.int32],
    reg: float,
    *,
    reg_exponent: float = 0.0,
    gram: Gram,
) -> npt.NDArray[np.float64]:
    """Returns (n_targets, n): what each item of one history adds to the scores that :func:`fold_in` gives.

    item_indices, weights: (n,) of the history, each item once · targets: (n_targets,) the scored items. The
    solution is linear in the right side, a sum over the history: the share of y in the score of t is
    (1 + w) · tᵀ(YᵀY + Σ w yyᵀ + λ·I)⁻¹y, and each row sums to the score (section 5 of the same paper).
    The one caller checks the arguments.
    """
    history, weights64 = vectors[item_indices].astype(np.float64), weights.astype(np.float64)
    left = gram + (history.T * weights64) @ history
    left.flat[:: len(left) + 1] += reg * (len(vectors) + weights64.sum()) ** reg_exponent
    solved = np.linalg.solve(left, vectors[targets].T.astype(np.float64))
    shares: npt.NDArray[np.float64] = (history @ solved).T * (1.0 + weights64)
    return shares


def gram_matrix(vectors: Vectors) -> Gram:
    """Returns YᵀY (d, d) float64 of the item vectors Y (n_items, d) float32, for :func:`fold_in`."""
    vectors = checks.check_matrix("vectors", vectors)
    total = np.zeros((vectors.shape[1], vectors.shape[1]))
    # In blocks: a copy of the whole catalogue in float64 would be twice its size.
    for start in range(0, len(vectors), GRAM_BLOCK):
        block = vectors[start : start + GRAM_BLOCK].astype(np.float64)
        total += block.T @ block
    return total


def count_repeats(interactions: Exclude) -> tuple[Exclude, Vectors]:
    """Returns the interactions with each item of a user once, ascending, and how often it stood there.

    interactions: (indptr (n_users + 1,) int64, item_indices int32) · the counts are float32. To like an item
    twice is to be surer of it (a larger weight), not to like two items.
    """
    indptr, item_indices = interactions
    users = np.repeat(np.arange(len(indptr) - 1, dtype=np.int64), np.diff(indptr))
    pairs, counts = np.unique((users << 32) | item_indices, return_counts=True)
    once = np.searchsorted(pairs >> 32, np.arange(len(indptr))).astype(np.int64)
    return (once, (pairs & 0xFFFFFFFF).astype(np.int32)), counts.astype(np.float32)


def check_reg(reg: float, reg_exponent: float) -> None:
    """Raises InvalidRequest unless the regularisation makes every system positive definite."""
    if not (np.isfinite(reg) and reg > 0):
        raise InvalidRequest("reg", found=reg, expected="a number above 0")
    if not 0 <= reg_exponent <= 1:
        raise InvalidRequest("reg_exponent", found=reg_exponent, expected="0 to 1")


def check_weights(weights: Vectors, shape: tuple[int, ...]) -> None:
    """Raises InvalidRequest unless there is one weight of at least 0 for each interaction."""
    if not isinstance(weights, np.ndarray) or weights.dtype != np.float32 or weights.shape != shape:
        raise InvalidRequest(
            "weights",
            found=f"of shape {np.shape(weights)}",
            expected=f"a float32 array of shape {shape}",
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise InvalidRequest("weights", found="negative or not finite", expected="numbers of at least 0")


def check_gram(gram: Gram, dim: int) -> Gram:
    """Returns the gram matrix as a C-order array, if it is one of ``dim``."""
    if not isinstance(gram, np.ndarray) or gram.dtype != np.float64 or gram.shape != (dim, dim):
        raise InvalidRequest(
            "gram", found=checks.kind_of(gram), expected=f"a float64 array of shape ({dim}, {dim})"
        )
    return np.ascontiguousarray(gram)


@kernel
def _solve_users(vectors, gram, indptr, item_indices, weights, reg, reg_exponent, users):
    n_items, dim = vectors.shape
    left, right = np.empty((dim, dim)), np.empty(dim)
    item, scaled = np.empty(dim), np.empty(dim)
    for user in range(users.shape[0]):
        if indptr[user] == indptr[user + 1]:
            continue
        left[:] = gram
        right[:] = 0.0
        total_weight = 0.0
        for position in range(indptr[user], indptr[user + 1]):
            item_index, weight = item_indices[position], np.float64(weights[position])
            total_weight += weight
            for j in range(dim):
                item[j] = vectors[item_index, j]
                scaled[j] = weight * item[j]
                right[j] += item[j] + scaled[j]
            for i in range(dim):
                factor = scaled[i]
                for j in range(i, dim):
                    left[i, j] += factor * item[j]
        ridge = reg * (n_items + total_weight) ** reg_exponent
        for i in range(dim):
            left[i, i] += ridge
        _solve_positive(left, right)
        for i in range(dim):
            users[user, i] = right[i]


@kernel
def _solve_positive(left, right):
    """Solves left · x = right in place by Cholesky; reads and overwrites the upper half of ``left``.

    Row by row from the top, each subtracted from all rows below it: the innermost loops run along rows,
    which the compiler turns into vector instructions, while a sum of products it may not reorder.
    """
    dim = right.shape[0]
    for k in range(dim):
        inverse = 1.0 / np.sqrt(left[k, k])
        for j in range(k, dim):
            left[k, j] *= inverse
        right[k] *= inverse
        for i in range(k + 1, dim):
            factor = left[k, i]
            right[i] -= factor * right[k]
            for j in range(i, dim):
                left[i, j] -= factor * left[k, j]
    for i in range(dim - 1, -1, -1):
        right[i] /= left[i, i]
        for j in range(i):
            right[j] -= left[j, i] * right[i]
