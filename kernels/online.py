"""Learning one example at a time: logistic regression by FTRL-proximal, and linear bandits.

Both learn from what was shown and then clicked. Steps are in float64 and in the order of the examples, so a
batch of them and the same ones in several batches leave the same state bit for bit.
"""

# mypy: allow-untyped-defs

from typing import Any

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks
from recserve.kernels.checks import Exclude
from recserve.kernels.jit import kernel

Numbers = npt.NDArray[np.float64]


def ftrl_steps(
    state: tuple[Numbers, Numbers],
    weights: npt.NDArray[np.float32],
    examples: Exclude,
    values: Numbers,
    labels: npt.NDArray[np.bool_],
    *,
    alpha: float,
    beta: float,
    l1: float,
    l2: float,
) -> Numbers:
    """Learns from each example in turn and returns its logarithmic loss before that, (n_examples,) float64.

    state: (z, n), float64 (n_features,) each, zeros at the start, changed in place · weights: float32
    (n_features,), set to what the state says wherever an example touches it · examples: (indptr
    (n_examples + 1,) int64, feature_indices int32) · values: float64, one for each feature index · labels:
    (n_examples,) bool · alpha > 0; beta, l1, l2 ≥ 0.

    McMahan et al., "Ad Click Prediction: a View from the Trenches", 2013, doi:10.1145/2487575.2488200,
    Algorithm 1. Raises InvalidRequest where an argument does not fit.
    """
    z, n = state
    for name, array, dtype in (("z", z, np.float64), ("n", n, np.float64), ("weights", weights, np.float32)):
        _check_state(name, array, dtype, (len(z),))
    indptr, indices = checks.check_lists("examples", examples, len(labels))
    checks.check_items("examples feature_indices", indices, len(z))
    if values.shape != indices.shape or values.dtype != np.float64 or not np.isfinite(values).all():
        raise InvalidRequest(
            "values", found=checks.kind_of(values), expected=f"{len(indices)} finite float64 numbers"
        )
    if labels.dtype != np.bool_:
        raise InvalidRequest("labels", found=checks.kind_of(labels), expected="a bool array")
    for name, value in (("alpha", alpha), ("beta", beta), ("l1", l1), ("l2", l2)):
        if not (0 < value < np.inf or (value == 0 and name != "alpha")):
            raise InvalidRequest(name, found=value, expected="0 or more, alpha above 0")
    losses = np.empty(len(labels))
    _ftrl(z, n, weights, indptr, indices, values, labels, alpha, beta, l1, l2, losses)
    return losses


def linear_steps(
    state: tuple[Numbers, Numbers], features: Numbers, clicked: npt.NDArray[np.bool_]
) -> Numbers:
    """Follows a ridge regression of clicks through impressions and clicks; returns (n,) changes of the loss.

    state: (inverse (d, d), theta (d,)) float64, the identity over the regulariser and zeros at the start,
    changed in place · features: (n, d) float64 C-order · clicked: (n,) bool; a row without is an impression,
    a row with one is the click on an impression of the same features that was a row before.

    With A = reg·I + Σ x xᵀ over impressions and b = Σ x over clicks, inverse = A⁻¹ (Sherman-Morrison) and
    theta = A⁻¹ b always: the model of Li, Chu, Langford, Schapire, "A Contextual-Bandit Approach to
    Personalized News Article Recommendation", 2010, doi:10.1145/1772690.1772758, where a click may come late.
    The loss is the squared error: x·theta squared for an impression, 1 − 2 x·theta more for its click.
    Raises InvalidRequest where an argument does not fit.
    """
    inverse, theta = state
    dim = len(theta)
    _check_state("inverse", inverse, np.float64, (dim, dim))
    _check_state("theta", theta, np.float64, (dim,))
    _check_features(features, dim)
    if clicked.shape != (len(features),) or clicked.dtype != np.bool_:
        raise InvalidRequest(
            "clicked", found=checks.kind_of(clicked), expected=f"bool of shape ({len(features)},)"
        )
    losses, scratch = np.empty(len(features)), np.empty(dim)
    _linear(inverse, theta, features, clicked, scratch, losses)
    return losses


def linear_widths(inverse: Numbers, features: Numbers) -> Numbers:
    """Returns √(xᵀ · inverse · x) of each row x of ``features``, (n, d): how little is known of it.

    inverse: (d, d) float64, symmetric; the result is (n,) float64. LinUCB scores x·theta + alpha times this.
    """
    _check_features(features, len(inverse))
    widths = np.zeros(len(features))
    _widths(checks.read_only(inverse), np.ascontiguousarray(features.T), np.empty(len(features)), widths)
    return widths


def _check_state(name: str, array: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    fits = isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == shape
    if not (fits and array.flags.carray):
        raise InvalidRequest(
            name, found=checks.kind_of(array), expected=f"writable {np.dtype(dtype)} of shape {shape}"
        )


def _check_features(features: Numbers, dim: int) -> None:
    if features.dtype != np.float64 or features.shape[1:] != (dim,) or not np.isfinite(features).all():
        raise InvalidRequest(
            "features", found=checks.kind_of(features), expected=f"finite float64 of shape (n, {dim})"
        )


@kernel
def _ftrl(z, n, weights, indptr, indices, values, labels, alpha, beta, l1, l2, losses):
    for example in range(labels.shape[0]):
        start, end = indptr[example], indptr[example + 1]
        margin = 0.0
        for position in range(start, end):
            margin += _ftrl_weight(z, n, indices[position], alpha, beta, l1, l2) * values[position]
        # σ(margin) and −ln σ(±margin), neither overflowing.
        small = np.exp(-abs(margin))
        probability = 1.0 / (1.0 + small) if margin > 0 else small / (1.0 + small)
        label = labels[example]
        losses[example] = np.log1p(small) + max(-margin if label else margin, 0.0)
        slope = probability - (1.0 if label else 0.0)
        for position in range(start, end):
            feature = indices[position]
            # A feature that is named twice is learned as two steps.
            weight = _ftrl_weight(z, n, feature, alpha, beta, l1, l2)
            gradient = slope * values[position]
            square = gradient * gradient
            rate = (np.sqrt(n[feature] + square) - np.sqrt(n[feature])) / alpha
            z[feature] += gradient - rate * weight
            n[feature] += square
            weights[feature] = np.float32(_ftrl_weight(z, n, feature, alpha, beta, l1, l2))


@kernel
def _ftrl_weight(z, n, feature, alpha, beta, l1, l2):
    value = z[feature]
    if abs(value) <= l1:
        return 0.0
    shrunk = value - l1 if value > 0 else value + l1
    return -shrunk / ((beta + np.sqrt(n[feature])) / alpha + l2)


@kernel
def _linear(inverse, theta, features, clicked, direction, losses):
    dim = theta.shape[0]
    for row in range(features.shape[0]):
        mean = 0.0
        for i in range(dim):
            mean += features[row, i] * theta[i]
        for i in range(dim):
            direction[i] = 0.0
        # Column by column: independent sums, which the compiler can do side by side.
        for j in range(dim):
            value = features[row, j]
            for i in range(dim):
                direction[i] += inverse[j, i] * value
        if clicked[row]:
            losses[row] = 1.0 - 2.0 * mean
            for i in range(dim):
                theta[i] += direction[i]
            continue
        losses[row] = mean * mean
        scale = 1.0
        for i in range(dim):
            scale += features[row, i] * direction[i]
        for i in range(dim):
            part = direction[i] / scale
            theta[i] -= part * mean
            for j in range(dim):
                inverse[i, j] -= part * direction[j]


@kernel
def _widths(inverse, columns, products, widths):
    dim, n_rows = columns.shape
    for j in range(dim):
        for row in range(n_rows):
            products[row] = 0.0
        for i in range(dim):
            value = inverse[j, i]
            for row in range(n_rows):
                products[row] += value * columns[i, row]
        for row in range(n_rows):
            widths[row] += products[row] * columns[j, row]
    for row in range(n_rows):
        # Rounding may leave a little less than nothing.
        widths[row] = np.sqrt(max(widths[row], 0.0))
