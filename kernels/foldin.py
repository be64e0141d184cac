"""Users unseen in training: their vector by one step of alternating least squares."""

# mypy: allow-untyped-defs

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks
from recserve.kernels.checks import Exclude
from recserve.kernels.equations import (
    LANES,
    ROWS,
    factorise,
    substitute,
    subtract,
    subtract_transposed,
    whole,
)
from recserve.kernels.jit import kernel

Vectors = npt.NDArray[np.float32]
Gram = npt.NDArray[np.float64]

GRAM_BLOCK = 4096
# Items of a history whose vectors are in the first-level cache together; a multiple of ROWS.
BLOCK = 32


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
    history: npt.NDArray[np.int32],
    weight: float,
    targets: npt.NDArray[np.int32],
    n: int,
    reg: float,
    *,
    reg_exponent: float = 0.0,
    gram: Gram,
) -> tuple[npt.NDArray[np.int32], Vectors]:
    """Returns what the ``n`` items of one history that add most add to the scores that :func:`fold_in` gives.

    history: int32, repeats count (weight times so often) · targets: (n_targets,) int32, the scored items ·
    both results are (n_targets, n or fewer): items of the history, int32, and their shares, float32, the
    largest first, of equals the item of the lower index. The solution is linear in the right side, a sum over
    the history: the share of y in the score of t is (1 + w) · tᵀ(YᵀY + Σ w yyᵀ + λ·I)⁻¹y, and all shares
    sum to the score (section 5 of the same paper). Raises InvalidRequest where an argument does not fit.
    """
    vectors = checks.check_matrix("vectors", vectors)
    check_reg(reg, reg_exponent)
    shape = (len(targets), checks.check_k(n))
    items, shares = np.empty(shape, np.int32), np.empty(shape, np.float32)
    gram = checks.read_only(check_gram(gram, vectors.shape[1]))
    # Histories of a bundle are memory-mapped, those of requests are not: one form for both.
    history, targets = checks.read_only(history), checks.read_only(targets)
    n_found = _largest_shares(
        vectors, gram, history, float(weight), targets, float(reg), float(reg_exponent), items, shares
    )
    if n_found < 0:
        checks.check_items("history", history, len(vectors))
        checks.check_items("targets", targets, len(vectors))
    return items[:, :n_found], shares[:, :n_found]


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
    dim = vectors.shape[1]
    width = whole(dim, LANES)
    matrix, block = np.zeros((width, width + LANES)), np.empty((2, BLOCK, width))
    for user in range(users.shape[0]):
        start, end = indptr[user], indptr[user + 1]
        if start == end:
            continue
        _assemble(
            vectors, gram, item_indices[start:end], weights[start:end], reg, reg_exponent, matrix, block
        )
        factorise(matrix, width)
        substitute(matrix, width)
        for i in range(dim):
            users[user, i] = matrix[i, width]


@kernel
def _largest_shares(vectors, gram, history, weight, targets, reg, reg_exponent, items, shares):
    """Fills the first columns of ``items`` and ``shares``, one per item of the history.

    Returns how many; −1 where an index is out of range.
    """
    for indices in (history, targets):
        for item in indices:
            if item < 0 or item >= vectors.shape[0]:
                return -1
    distinct = np.sort(history)
    weights = np.zeros(distinct.shape[0], np.float32)
    n_distinct = 0
    for item in distinct:
        if n_distinct == 0 or distinct[n_distinct - 1] != item:
            distinct[n_distinct] = item
            n_distinct += 1
        weights[n_distinct - 1] += np.float32(1.0)
    distinct, weights = distinct[:n_distinct], weights[:n_distinct]
    weights *= np.float32(weight)

    dim, n_targets = vectors.shape[1], targets.shape[0]
    width, n_right = whole(dim, LANES), whole(max(1, n_targets), LANES)
    matrix, block = np.zeros((width, width + n_right)), np.empty((2, BLOCK, width))
    _assemble(vectors, gram, distinct, weights, reg, reg_exponent, matrix, block)
    for t in range(n_targets):
        for i in range(dim):
            matrix[i, width + t] = vectors[targets[t], i]
    factorise(matrix, width)
    substitute(matrix, width)

    near, products = block[0], np.zeros((whole(n_distinct, BLOCK), n_right))
    for start in range(0, n_distinct, BLOCK):
        count = min(BLOCK, n_distinct - start)
        _gather(vectors, distinct, start, count, near)
        for row in range(0, count, ROWS):
            for column in range(0, n_right, LANES):
                subtract(products, start + row, column, near, row, 0, matrix, 0, width + column, width)
        for row in range(start, start + count):
            for column in range(n_right):
                products[row, column] *= -(1.0 + weights[row])
    n_found = min(n_distinct, items.shape[1])
    _take_largest(products, distinct, n_found, items, shares)
    return n_found


@kernel
def _take_largest(products, distinct, n, items, shares):
    """Moves the ``n`` largest of each column to a row of ``shares``: all at once, no branch to guess."""
    n_columns = products.shape[1]
    largest, places = np.empty(n_columns), np.empty(n_columns, np.int64)
    for rank in range(n):
        largest[:] = -np.inf
        places[:] = 0
        for row in range(distinct.shape[0]):
            for column in range(n_columns):
                value, before = products[row, column], largest[column]
                largest[column] = value if value > before else before
                places[column] = row if value > before else places[column]
        for column in range(items.shape[0]):
            place = places[column]
            items[column, rank], shares[column, rank] = distinct[place], largest[column]
            products[place, column] = -np.inf


@kernel
def _assemble(vectors, gram, item_indices, weights, reg, reg_exponent, matrix, block):
    """Writes YᵀY + Σ w yyᵀ + λ·I and, in the first column right of it, Σ (1 + w) y."""
    n_items, dim = vectors.shape
    width = matrix.shape[0]
    near, scaled = block[0], block[1]
    matrix[:] = 0.0
    for i in range(dim):
        for j in range(i, dim):
            matrix[i, j] = gram[i, j]
    total_weight = 0.0
    for start in range(0, item_indices.shape[0], BLOCK):
        count = min(BLOCK, item_indices.shape[0] - start)
        _gather(vectors, item_indices, start, count, near)
        for row in range(count):
            weight = np.float64(weights[start + row])
            total_weight += weight
            for i in range(width):
                # What is subtracted is added.
                scaled[row, i] = -weight * near[row, i]
                matrix[i, width] += near[row, i] - scaled[row, i]
        for row in range(0, width, ROWS):
            for column in range(row // LANES * LANES, width, LANES):
                subtract_transposed(matrix, row, column, scaled, 0, row, near, 0, column, count)
    ridge = reg * (n_items + total_weight) ** reg_exponent
    for i in range(dim):
        matrix[i, i] += ridge
    for i in range(dim, width):
        matrix[i, i] = 1.0


@kernel
def _gather(vectors, item_indices, start, count, near):
    """Copies the vectors of ``count`` items to ``near``, zeros beyond their end and below, up to a tile."""
    dim = vectors.shape[1]
    for row in range(count):
        item = item_indices[start + row]
        for i in range(dim):
            near[row, i] = vectors[item, i]
        near[row, dim:] = 0.0
    near[count : whole(count, ROWS)] = 0.0
