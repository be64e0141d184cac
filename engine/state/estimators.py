"""Rates of what users did, as they were and as they would have been, with intervals that know of users.

All are ratios of sums over impressions. Those of one user are not independent, so the variance is that of
sums over users, linearised: with U users, sums y and x of each and R = Σy / Σx,
Var R ≈ U / (U − 1) · Σ (y − R·x)² / (Σx)² (Cochran, "Sampling Techniques", 1977, chapter 6; Deng,
Knoblich, Lu, "Applying the Delta Method in Metric Analytics", 2018, arXiv:1803.06336).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Two-sided 95 % of the normal distribution.
Z = 1.959963984540054


class Estimate(NamedTuple):
    """A value and its 95 % interval; none where the data have no spread to tell it by."""

    value: float
    interval: tuple[float, float] | None


def ratio(
    numerators: NDArray[np.float64], denominators: NDArray[np.float64], users: NDArray[np.int32]
) -> Estimate | None:
    """Returns Σ numerators / Σ denominators, (n,) each, with ``users`` (n,) from 0 on as clusters.

    None where the denominators sum to 0.
    """
    total = float(denominators.sum())
    if not total:
        return None
    value = float(numerators.sum()) / total
    _, cluster = np.unique(users, return_inverse=True)
    n_users = int(cluster.max()) + 1
    if n_users < 2:
        return Estimate(value, None)
    rest = np.bincount(cluster, numerators - value * denominators)
    deviation = math.sqrt(n_users / (n_users - 1) * float(rest @ rest)) / abs(total)
    return Estimate(value, (value - Z * deviation, value + Z * deviation) if deviation else None)


def rate(happened: NDArray[np.bool_], users: NDArray[np.int32]) -> Estimate | None:
    """Returns the share of impressions, (n,), with which something happened."""
    return ratio(happened.astype(np.float64), np.ones(len(happened)), users)


def ips(
    rewards: NDArray[np.float64], weights: NDArray[np.float64], users: NDArray[np.int32]
) -> Estimate | None:
    """Returns what another policy would have earned per impression: Σ w·r / n, unbiased.

    weights: (n,) probability of the shown item under that policy, divided by its propensity under the one
    that showed it (Horvitz, Thompson, "A Generalization of Sampling Without Replacement", 1952).
    """
    return ratio(weights * rewards, np.ones(len(rewards)), users)


def snips(
    rewards: NDArray[np.float64], weights: NDArray[np.float64], users: NDArray[np.int32]
) -> Estimate | None:
    """Returns the same by Σ w·r / Σ w: biased by O(1/n), of less variance, and never beyond the rewards.

    Swaminathan, Joachims, "The Self-Normalized Estimator for Counterfactual Learning", NIPS 2015.
    """
    return ratio(weights * rewards, weights, users)
