"""Metrics of predicted ratings: how far predictions are from what users said.

Definitions, over n pairs of a prediction p and a rating r: MSE = Σ (p − r)² / n; RMSE = √MSE;
MAE = Σ |p − r| / n. Every rating counts once: a user with many ratings weighs more than one with few.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.errors import InvalidRequest
from recserve.training.metrics import N_BOOTSTRAP, Estimate

Values = NDArray[np.floating[Any]]


def mse(predicted: Values, rated: Values) -> float:
    """Returns the mean squared error of ``predicted`` (n,), n ≥ 1."""
    return float(np.mean(_errors(predicted, rated) ** 2))


def rmse(predicted: Values, rated: Values) -> float:
    """Returns the root of the mean squared error of ``predicted`` (n,), n ≥ 1, in units of the rating."""
    return float(np.sqrt(mse(predicted, rated)))


def mae(predicted: Values, rated: Values) -> float:
    """Returns the mean absolute error of ``predicted`` (n,), n ≥ 1, in units of the rating."""
    return float(np.mean(np.abs(_errors(predicted, rated))))


def estimate_ratings(
    predicted: Values,
    rated: Values,
    indptr: NDArray[np.int64],
    *,
    seed: int = 0,
    n_samples: int = N_BOOTSTRAP,
) -> dict[str, Estimate]:
    """Returns RMSE, MSE and MAE with bootstrap 95 % intervals over users.

    User i's pairs are ``indptr[i]:indptr[i + 1]``. Whole users are drawn, since ratings of one user are
    alike; without samples an interval is the value itself.
    """
    values = {"RMSE": rmse(predicted, rated), "MSE": mse(predicted, rated), "MAE": mae(predicted, rated)}
    if n_samples == 0:
        return {name: Estimate(value, value, value) for name, value in values.items()}
    errors = _errors(predicted, rated)
    per_pair = np.stack([errors**2, np.abs(errors), np.ones(len(errors))])
    ends = np.concatenate([np.zeros((3, 1)), np.cumsum(per_pair, axis=1)], axis=1)[:, indptr]
    per_user = np.diff(ends, axis=1)[:, np.diff(indptr) > 0]
    n_users, rng = per_user.shape[1], np.random.default_rng(seed)
    sums = np.array([per_user[:, rng.integers(0, n_users, n_users)].sum(axis=1) for _ in range(n_samples)])
    squares, absolutes = (sums[:, :2] / sums[:, 2:]).T
    samples = {"RMSE": np.sqrt(squares), "MSE": squares, "MAE": absolutes}
    bounds = {name: np.percentile(samples[name], [2.5, 97.5]).tolist() for name in values}
    return {name: Estimate(value, *bounds[name]) for name, value in values.items()}


def _errors(predicted: Values, rated: Values) -> NDArray[np.float64]:
    if predicted.shape != rated.shape or predicted.ndim != 1 or len(predicted) == 0:
        raise InvalidRequest(
            "predicted ratings",
            found=f"of shape {predicted.shape} for ratings of shape {rated.shape}",
            expected="two flat arrays of one length above 0",
        )
    return predicted.astype(np.float64) - rated.astype(np.float64)
