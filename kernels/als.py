"""Training by alternating least squares: a few steps of conjugate gradients towards each row's solution."""

# mypy: allow-untyped-defs

import numpy as np

from recserve.errors import InvalidRequest
from recserve.kernels import checks
from recserve.kernels.blocks import ROWS, add_rows, dot_rows
from recserve.kernels.checks import Exclude
from recserve.kernels.foldin import Gram, Vectors, check_gram, check_reg, check_weights, gram_matrix
from recserve.kernels.jit import kernel
from recserve.kernels.simd import dot


def als_step(
    vectors: Vectors,
    others: Vectors,
    interactions: Exclude,
    weights: Vectors,
    reg: float,
    *,
    reg_exponent: float = 0.0,
    gram: Gram | None = None,
    n_steps: int = 3,
) -> float:
    """Moves each of ``vectors`` towards what :func:`fold_in` gives for its interactions, from where it is.

    vectors: (n_rows, d) float32 C-order, changed in place · others: (n_others, d) float32, what the
    interactions point to · the rest as for ``fold_in``. Alternating least squares needs no exact solution
    when the next round starts from this one (Takács, Pilászy, Tikk, "Applications of the Conjugate Gradient
    Method for Implicit Feedback Collaborative Filtering", 2011, doi:10.1145/2043932.2043987): ``n_steps`` of
    conjugate gradients cost O(n_steps · d) per interaction instead of O(d²), in float32. A row without
    interactions becomes zero. Returns the loss before the steps, Σ (1 + w)(1 − s)² over the interactions
    + Σ s² over all other pairs, s being the scores. Raises InvalidRequest where an argument does not fit.
    """
    others = checks.check_matrix("others", others)
    checks.check_matrix("vectors", vectors, others.shape[1])
    if not (vectors.flags.c_contiguous and vectors.flags.writeable):
        raise InvalidRequest("vectors", found="read-only or not C-order", expected="a writable C-order array")
    indptr, indices = checks.check_interactions(interactions, len(others))
    if len(indptr) != len(vectors) + 1:
        raise InvalidRequest("vectors", found=f"{len(vectors)} rows", expected=f"{len(indptr) - 1} rows")
    check_weights(weights, indices.shape)
    check_reg(reg, reg_exponent)
    if n_steps < 1:
        raise InvalidRequest("n_steps", found=n_steps, expected="1 or more")
    gram = gram_matrix(others) if gram is None else check_gram(gram, others.shape[1])
    return float(
        _descend(
            vectors,
            others,
            checks.read_only(gram.astype(np.float32)),
            indptr,
            indices,
            checks.read_only(weights),
            float(reg),
            float(reg_exponent),
            n_steps,
        )
    )


@kernel
def _descend(vectors, others, gram, indptr, indices, weights, reg, reg_exponent, n_steps):
    n_rows, dim = vectors.shape
    one = np.float32(1.0)
    longest = 0
    for row in range(n_rows):
        longest = max(longest, indptr[row + 1] - indptr[row])
    # The others of one row side by side, up to whole blocks: each is read 2 (n_steps + 1) times.
    near = np.zeros((_whole_blocks(longest), dim), np.float32)
    confidence, scores = np.zeros(near.shape[0], np.float32), np.empty(near.shape[0], np.float32)
    square = np.zeros((_whole_blocks(dim), dim), np.float32)
    square[:dim] = gram
    padded = np.zeros(square.shape[0], np.float32)
    direction, residual = np.empty((1, dim), np.float32), np.empty((1, dim), np.float32)
    product = np.empty((1, dim), np.float32)
    loss = 0.0
    for row in range(n_rows):
        start, count = indptr[row], indptr[row + 1] - indptr[row]
        if count == 0:
            vectors[row] = 0.0
            continue
        n_near = _whole_blocks(count)
        total_weight = 0.0
        for i in range(count):
            index = indices[start + i]
            for j in range(dim):
                near[i, j] = others[index, j]
            confidence[i] = weights[start + i]
            total_weight += confidence[i]
        near[count:n_near] = 0.0
        confidence[count:n_near] = 0.0
        ridge = np.float32(reg * (others.shape[0] + total_weight) ** reg_exponent)

        # residual = right side − left side · x, and the loss, which needs the same scores.
        _times_square(square, vectors, row, padded, product)
        loss += dot(vectors, row, product, 0)
        for i in range(0, n_near, ROWS):
            dot_rows(scores, i, near, i, vectors, row)
        for i in range(count):
            missing = one - scores[i]
            loss += (one + confidence[i]) * missing * missing - scores[i] * scores[i]
            scores[i] = one + confidence[i] * missing
        for j in range(dim):
            residual[0, j] = -product[0, j] - ridge * vectors[row, j]
        for i in range(0, n_near, ROWS):
            add_rows(residual, 0, scores, i, near, i)

        direction[:] = residual
        squared = dot(residual, 0, residual, 0)
        for _ in range(n_steps):
            if squared < np.float32(1e-20):
                break
            _times_square(square, direction, 0, padded, product)
            for j in range(dim):
                product[0, j] += ridge * direction[0, j]
            for i in range(0, n_near, ROWS):
                dot_rows(scores, i, near, i, direction, 0)
                for k in range(i, i + ROWS):
                    scores[k] *= confidence[k]
                add_rows(product, 0, scores, i, near, i)
            length = squared / dot(direction, 0, product, 0)
            for j in range(dim):
                vectors[row, j] += length * direction[0, j]
                residual[0, j] -= length * product[0, j]
            before, squared = squared, dot(residual, 0, residual, 0)
            turn = squared / before
            for j in range(dim):
                direction[0, j] = residual[0, j] + turn * direction[0, j]
    return loss


@kernel
def _whole_blocks(n):
    return (n + ROWS - 1) // ROWS * ROWS


@kernel
def _times_square(square, matrix, row, padded, product):
    """product (1, d) = square · matrix[row], square being symmetric, zeros up to a whole block."""
    for j in range(product.shape[1]):
        padded[j] = matrix[row, j]
        product[0, j] = 0.0
    for i in range(0, square.shape[0], ROWS):
        add_rows(product, 0, padded, i, square, i)
