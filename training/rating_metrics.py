"""Metrics of predicted ratings: how far predictions are from what users said.

Definitions, over n pairs of a prediction p and a rating r: MSE = Σ (p − r)² / n; RMSE = √MSE;
MAE = Σ |p − r| / n. Every rating counts once: a user with many ratings weighs more than one with few.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.errors import InvalidRequest

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


def _errors(predicted: Values, rated: Values) -> NDArray[np.float64]:
    if predicted.shape != rated.shape or predicted.ndim != 1 or len(predicted) == 0:
        raise InvalidRequest(
            "predicted ratings",
            found=f"of shape {predicted.shape} for ratings of shape {rated.shape}",
            expected="two flat arrays of one length above 0",
        )
    return predicted.astype(np.float64) - rated.astype(np.float64)
